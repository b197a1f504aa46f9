"""Speed of training: images and FLOPs per second, and the share of the device's peak.

One multiply-add is two FLOPs; matrix products, convolutions and attention count (torch's own counter).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tapstudy_training.recipes import Recipe
from tapstudy_training.tasks import Task

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


def training_flops(task: Task, recipe: Recipe, step: int = 0) -> int:
    """FLOPs of forward and backward pass of one image of the batch of a step, counted in one such pass on the CPU."""
    x, condition, _, t = task.batch(replace(recipe, batch_size=1), step).to(torch.device("cpu"))
    modules = task.build().eval()
    # attention as plain products: the counter knows no fused kernel of the CPU
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task.velocity(modules, x, t, condition).sum().backward()
    return int(counter.get_total_flops())


def known_peak(device: torch.device | str) -> float | None:
    """Peak FLOP/s of the device in bf16, where it is known."""
    if torch.device(device).type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)
