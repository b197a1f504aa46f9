"""Where the image tokens are in a sequence that may also hold text, padding or reference images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tapstudy.instrument.layouts import Start


@dataclass(frozen=True)
class ImageTokens:
    """A run of `count` tokens.

    Args:
        count: frames * rows * columns of the image being made.
        start: first of them in the sequence; one number, or one per sample. None: they come last.
    """

    count: int
    start: Start = 0

    def fit(self, sequence: Tensor) -> bool:
        """Tell whether a sequence (batch, token, channel) is long enough to hold them."""
        if self.start is None:
            return self.count <= sequence.shape[1]
        if isinstance(self.start, int):
            return 0 <= self.start <= sequence.shape[1] - self.count
        return len(self.start) == len(sequence) and all(
            0 <= start <= sequence.shape[1] - self.count for start in self.start
        )

    def take(self, sequence: Tensor) -> Tensor:
        """Return the image tokens of a sequence (batch, token, channel); a view where they start at the same place."""
        if isinstance(self.start, int):
            return sequence[:, self.start : self.start + self.count]
        starts = self._starts(sequence)
        if len(set(starts)) == 1:
            return sequence[:, starts[0] : starts[0] + self.count]
        return torch.stack([row[a : a + self.count] for row, a in zip(sequence, starts, strict=True)])

    def put(self, sequence: Tensor, image: Tensor) -> Tensor:
        """`sequence` with `image` in place of its image tokens, in the dtype of `sequence`."""
        starts = [self.start] if isinstance(self.start, int) else self._starts(sequence)
        if set(starts) == {0} and self.count == sequence.shape[1]:
            return image.to(sequence.dtype)
        result = sequence.clone()
        if len(set(starts)) == 1:
            result[:, starts[0] : starts[0] + self.count] = image
            return result
        for b, a in enumerate(starts):
            result[b, a : a + self.count] = image[b]
        return result

    def _starts(self, sequence: Tensor) -> Sequence[int]:
        """Return one number for all samples, or one for each."""
        if self.start is None:
            return [sequence.shape[1] - self.count]
        return [self.start] if isinstance(self.start, int) else self.start


def add_into(sum_: Tensor, other: Tensor) -> Tensor:
    """sum_ + other, in the memory of `sum_` unless the sum is of a wider dtype or has a gradient."""
    fits = torch.promote_types(sum_.dtype, other.dtype) == sum_.dtype
    if not fits or sum_.requires_grad or (other.requires_grad and torch.is_grad_enabled()):
        return sum_ + other
    return sum_.add_(other)
