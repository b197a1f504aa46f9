"""Distance between images. All are float, (batch, band, row, column); the data range is always stated."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure


def psnr(images: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of every image, in dB, (batch,); infinite for equal images."""
    return torch.stack([
        peak_signal_noise_ratio(image, target, data_range=data_range)
        for image, target in zip(images, reference, strict=True)
    ])  # fmt: skip


def ssim(images: Tensor, reference: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Structural similarity of every image, (batch,)."""
    found = structural_similarity_index_measure(images, reference, data_range=data_range, reduction="none")
    assert isinstance(found, Tensor)
    return found
