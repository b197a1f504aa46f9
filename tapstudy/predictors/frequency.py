"""Reuse low spatial frequencies of the token grid and predict high ones, as FreqCa, arXiv 2510.08669.

With L the projection to the low band, the forecast is L F_low + (1 - L) F_high, where F_low and F_high are forecasts
by a linear predictor each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import pi
from typing import Literal

import torch
from torch import Tensor

from tapstudy.core.checks import check_between
from tapstudy.core.transfer import onto
from tapstudy.predictors.family import Family, Label, rows_of
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.nonlinear import Grid, combine_values
from tapstudy.predictors.reuse import Reuse


@dataclass(frozen=True)
class FrequencySplit:
    """Predict linearly in the anchors; a token's prediction depends on all tokens, so no row stands for it.

    Args:
        low, high: families of one member each. FreqCa: reuse, and HiCache's order 2 with sigma 0.71.
        cutoff: part of the largest frequency up to which a frequency is low.
        transform: "dct": cosine transform over rows and columns of each frame, frequencies by their distance from 0
            (FreqCa on FLUX). "fft": Fourier transform along the sequence of tokens (FreqCa on Qwen-Image).

    Raises:
        ValueError: a family with several members, a cutoff outside [0, 1], an unknown transform.
    """

    waits = 0

    low: Family = field(default_factory=Reuse)
    high: Family = field(default_factory=lambda: HermiteFamily(sigma=0.71))
    cutoff: float = 0.1
    transform: Literal["dct", "fft"] = "dct"

    def __post_init__(self) -> None:
        for name, family in (("low", self.low), ("high", self.high)):
            if len(family.labels) != 1:
                raise ValueError(f"FrequencySplit: {name} must have one member, got {len(family.labels)}: {family}")
        check_between("FrequencySplit: cutoff", self.cutoff, 0, 1)
        if self.transform not in ("dct", "fft"):
            raise ValueError(f"FrequencySplit: transform must be 'dct' or 'fft', got {self.transform!r}")

    @property
    def label(self) -> Label:
        return Label(self.high.labels[0].order, 0, "frequency")

    @property
    def num_anchors(self) -> int:
        return max(self.low.num_anchors, self.high.num_anchors)

    def predict(
        self, anchors: Sequence[int], values: Sequence[Tensor], step: int, *, grid: Grid | None = None
    ) -> Tensor:
        """Raises ValueError if the transform is "dct" and the grid is unknown or not that of the tokens."""
        low, high = (
            combine_values(values[: family.num_anchors], rows_of(family, anchors[: family.num_anchors], step)[0])
            for family in (self.low, self.high)
        )  # (B, N, D) each
        return high + self.low_band(low - high, grid=grid)

    def low_band(self, tokens: Tensor, *, grid: Grid | None = None) -> Tensor:
        """Take the low frequencies of (batch, token, channel)."""
        if self.transform == "fft":
            frequency = torch.fft.fftfreq(tokens.shape[1], device=tokens.device).abs()
            spectrum = torch.fft.fft(tokens, dim=1) * (frequency <= self.cutoff * frequency.max())[:, None]
            return torch.fft.ifft(spectrum, dim=1).real
        if grid is None or grid[0] * grid[1] * grid[2] != tokens.shape[1]:
            raise ValueError(
                f"FrequencySplit needs the token grid for its cosine transform: got grid {grid} for "
                f"{tokens.shape[1]} tokens; transform='fft' needs none"
            )
        rows, columns = (onto(cosines(size), tokens.device, tokens.dtype) for size in grid[1:])  # (H, H), (W, W)
        radius = torch.hypot(
            *torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in grid[1:]), indexing="ij")
        )  # (H, W)
        mask = onto(radius <= self.cutoff * radius.max(), tokens.device, tokens.dtype)
        image = tokens.unflatten(1, grid)  # (B, F, H, W, D)
        spectrum = torch.einsum("vh,uw,bfhwd->bfvud", rows, columns, image) * mask[..., None]
        return torch.einsum("vh,uw,bfvud->bfhwd", rows, columns, spectrum).flatten(1, 3)


@lru_cache(maxsize=16)
def cosines(size: int) -> Tensor:
    """Compute the orthonormal cosine transform DCT-II, (frequency, position), float64."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    matrix = torch.cos(pi / size * torch.arange(size, dtype=torch.float64)[:, None] * position)
    matrix *= (2 / size) ** 0.5
    matrix[0] *= 0.5**0.5
    return matrix
