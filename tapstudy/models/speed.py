"""Speed of training: images and FLOPs per second, and the share of the device's peak.

One multiply-add is two FLOPs; matrix products, convolutions and attention count (torch's own counter).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch.utils.flop_counter import FlopCounterMode

# Dense bf16, FLOP/s, from the vendor's datasheets.
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}


@dataclass(frozen=True)
class Speed:
    """Throughput of a run, with what one image costs and what the device could do (None: unknown)."""

    images_per_second: float
    flops_per_image: int
    peak: float | None = None

    @property
    def flops_per_second(self) -> float:
        return self.images_per_second * self.flops_per_image

    @property
    def share(self) -> float | None:
        """Of the peak."""
        return None if self.peak is None else self.flops_per_second / self.peak

    def __str__(self) -> str:
        text = (
            f"{self.images_per_second:,.0f} images/s, {self.flops_per_second / 1e12:,.2f} TFLOP/s "
            f"({self.flops_per_image / 1e9:.1f} GFLOPs an image)"
        )
        if self.peak is None:
            return text
        return f"{text}, {100 * self.flops_per_second / self.peak:.0f} % of {self.peak / 1e12:.0f} TFLOP/s"


def training_flops(model_config: Mapping[str, Any]) -> int:
    """FLOPs of forward and backward pass of one image, counted without computing anything."""
    with torch.device("meta"):
        model = DiTTransformer2DModel.from_config(dict(model_config)).eval()
        image = torch.zeros(1, model.config.in_channels, model.config.sample_size, model.config.sample_size)
        with FlopCounterMode(display=False) as counter:
            label = torch.zeros(1, dtype=torch.long)
            model(image, timestep=torch.zeros(1), class_labels=label).sample.sum().backward()
    return int(counter.get_total_flops())


def known_peak(device: torch.device | str) -> float | None:
    """Peak FLOP/s of the device in bf16, where it is known."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
