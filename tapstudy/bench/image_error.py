"""Distance between images. All are float, (batch, [frame,] band, row, column); the data range is always stated."""

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


def measures(own: xr.Dataset, reference: xr.Dataset, judge: Judge | None) -> dict[str, Any]:
    """Compare what `engine.run` made of images with their reference: `MEASURES`, (sample,) each.

    Args:
        judge: None leaves what it would say NaN.
    """
    images, exact = unit_images(own), unit_images(reference)
    unknown = torch.full((len(images),), torch.nan)
    return {
        "psnr": psnr(images, exact, data_range=1.0),
        "ssim": ssim(images, exact, data_range=1.0),
        "perceptual": unknown if judge is None else judge.perceptual_distance(images, exact),
        "correct": unknown if judge is None else judge.correct(images, own["label"].values.tolist()),
        "full_passes": [mask.count("F") for mask in own["mask"].values],
    }


def unit_images(found: xr.Dataset) -> Tensor:
    """Return the images of a run as floats in [0, 1], (sample, [frame,] band, y, x)."""
    values = torch.from_numpy(found["image"].values)
    return values if values.is_floating_point() else values.float() / 255


def psnr(images: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Compute the peak signal-to-noise ratio of every image, in dB, (batch,); infinite for equal images."""
    return torch.stack([
        peak_signal_noise_ratio(image, target, data_range=data_range)
        for image, target in zip(images, reference, strict=True)
    ])  # fmt: skip


def ssim(images: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Compute the structural similarity of every image, (batch,); of videos the mean over frames."""
    frames = images.shape[1:-3].numel()
    found = structural_similarity_index_measure(
        images.flatten(0, -4), reference.flatten(0, -4), data_range=data_range, reduction="none"
    )
    assert isinstance(found, Tensor)
    return found.unflatten(0, (-1, frames)).mean(dim=1)
