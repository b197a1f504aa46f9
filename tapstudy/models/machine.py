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


def find_device(device: str) -> torch.device:
    """Return the device of that name; "auto" is a GPU where there is one.

    Raises:
        ValueError: a GPU is asked for and there is none, or no such device.
    """
    gpu = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if gpu else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"no device {device!r}: choose auto, cpu or cuda")
    if found.type == "cuda" and not gpu:
        raise ValueError(f"device {device!r} was asked for, but torch {torch.__version__} sees no GPU: use cpu")
    if found.type == "cuda" and found.index is not None and found.index >= torch.cuda.device_count():
        raise ValueError(f"no device {device!r}: torch sees {torch.cuda.device_count()} GPUs, counted from 0")
    return found
