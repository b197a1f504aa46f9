"""Images as networks of the CLIP family see them."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of OpenAI's training images
STD = (0.26862954, 0.26130258, 0.27577711)


def rgb(images: Tensor) -> Tensor:
    """Return all frames of images or videos in three bands, (frame, 3, y, x), from ([sample, frame,] band, y, x).

    Raises:
        ValueError: neither one band nor three.
    """
    if images.shape[-3] not in (1, 3):
        raise ValueError(f"images must have one band or three, got {images.shape[-3]}")
    return images.reshape(-1, *images.shape[-3:]).expand(-1, 3, -1, -1)


def saved(images: Tensor) -> Tensor:
    """Return what `rgb` does as it would be saved, uint8, (frame, y, x, 3)."""
    return (rgb(images).clamp(0, 1) * 255).round().to(torch.uint8).movedim(1, -1)


def normalised_for_clip(image: Tensor, size: int) -> Tensor:
    """Resize the shorter side to `size` (bicubic, as Pillow does), crop the middle and normalise.

    Args:
        image: in [0, 1], ([frame,] band, y, x).

    Returns:
        (frame, 3, size, size).
    """
    found = []
    for frame in saved(image):
        picture = Image.fromarray(frame.numpy())
        scale = size / min(picture.size)
        width, height = (size if side == min(picture.size) else int(side * scale) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        left, top = round((width - size) / 2), round((height - size) / 2)
        picture = picture.crop((left, top, left + size, top + size))
        found.append(torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, 3))
    values = torch.stack(found).movedim(-1, 1).float() / 255
    return (values - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
