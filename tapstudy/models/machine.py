"""Where a model is trained or measured, for the records."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """Where to compute. `peak` is in FLOP/s (None: the device's, where it is known)."""

    device: str
    compile: bool = True
    peak: float | None = None

    def __str__(self) -> str:
        if torch.device(self.device).type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{os.cpu_count()} {platform.machine()} cores"
