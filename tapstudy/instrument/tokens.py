"""Where the image tokens are in a sequence that may also hold text, padding or reference images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImageTokens:
    """A run of `count` tokens.

    Args:
        count: frames * rows * columns of the image being made.
        start: first of them in the sequence; one number, or one per sample.
    """

    count: int
    start: int | Sequence[int] = 0

    def fit(self, sequence: Tensor) -> bool:
        """Whether a sequence (batch, token, channel) is long enough to hold them."""
        if isinstance(self.start, int):
            return self.start + self.count <= sequence.shape[1]
        return len(self.start) == len(sequence) and max(self.start) + self.count <= sequence.shape[1]

    def take(self, sequence: Tensor) -> Tensor:
        """The image tokens of a sequence (batch, token, channel)."""
        if isinstance(self.start, int):
            return sequence[:, self.start : self.start + self.count]
        return torch.stack([row[a : a + self.count] for row, a in zip(sequence, self.start, strict=True)])

    def put(self, sequence: Tensor, image: Tensor) -> Tensor:
        """`sequence` with `image` in place of its image tokens, in the dtype of `sequence`."""
        if self.start == 0 and self.count == sequence.shape[1]:
            return image.to(sequence.dtype)
        starts = [self.start] * len(sequence) if isinstance(self.start, int) else self.start
        return torch.stack([
            torch.cat([row[:a], tokens.to(row.dtype), row[a + self.count :]])
            for row, tokens, a in zip(sequence, image, starts, strict=True)
        ])  # fmt: skip
