"""Distance between images. All are float, (batch, band, row, column); the data range is always stated."""

from __future__ import annotations

from typing import Any

import torch
import xarray as xr
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tapstudy.bench.judge import Judge

# what `measures` finds: name -> meaning and unit
MEASURES = {
    "psnr": ("PSNR to the reference (data range 1)", "dB"),
    "ssim": ("SSIM to the reference (data range 1)", "1"),
    "perceptual": ("distance in the judge's features to the reference", "1"),
    "correct": ("classified as its label", "1"),
    "full_passes": ("full passes of the model", "1"),
}
MASK = "F full, . skipped, s skipped with a pass beside"


def measures(own: xr.Dataset, reference: xr.Dataset, judge: Judge) -> dict[str, Any]:
    """Compare what `engine.run` made of images with their reference: `MEASURES`, (sample,) each."""
    images, exact = (torch.from_numpy(found["image"].values) for found in (own, reference))
    return {
        "psnr": psnr(images, exact, data_range=1.0),
        "ssim": ssim(images, exact, data_range=1.0),
        "perceptual": judge.perceptual_distance(images, exact),
        "correct": judge.correct(images, own["label"].values.tolist()),
        "full_passes": [mask.count("F") for mask in own["mask"].values],
    }


def psnr(images: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Compute the peak signal-to-noise ratio of every image, in dB, (batch,); infinite for equal images."""
    return torch.stack([
        peak_signal_noise_ratio(image, target, data_range=data_range)
        for image, target in zip(images, reference, strict=True)
    ])  # fmt: skip


def ssim(images: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Compute the structural similarity of every image, (batch,)."""
    found = structural_similarity_index_measure(images, reference, data_range=data_range, reduction="none")
    assert isinstance(found, Tensor)
    return found
