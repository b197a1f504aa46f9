"""Extrapolate by rational functions, channel by channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tapstudy.core.weights import Differences, difference_rows, extrapolation_row
from tapstudy.predictors.family import Label
from tapstudy.predictors.nonlinear import Grid, combine_values


@dataclass(frozen=True)
class Pade:
    """Take the [1/1] Pade approximant of the order-2 Taylor forecast: F + D_1 k / (1 - q), q = D_2 k / (2 D_1).

    Args:
        differences: rule for D_1 and D_2.
        limit: beyond this q, towards the pole at q = 1, a channel takes the linear forecast.

    Raises:
        ValueError: a limit that would reach the pole.
    """

    label = Label(2, 0, "pade")
    num_anchors = 3
    waits = 0

    differences: Differences = "recursive"
    limit: float = 0.5

    def __post_init__(self) -> None:
        if not self.limit < 1:
            raise ValueError(f"Pade: limit must be below 1, where the pole is, got {self.limit}")

    def predict(
        self, anchors: Sequence[int], values: Sequence[Tensor], step: int, *, grid: Grid | None = None
    ) -> Tensor:
        """With fewer than three anchors: a line, or reuse."""
        del grid
        distance = step - anchors[0]
        if len(anchors) < 3:
            return combine_values(values, extrapolation_row(anchors, len(anchors) - 1, distance))
        newest, slope, bend = (combine_values(values, row) for row in difference_rows(anchors, 2, self.differences))
        ratio = bend * (distance / 2) / slope  # q, (B, N, D); a slope of 0 makes it infinite or no number
        usable = ratio.abs().isfinite() & (ratio <= self.limit)
        return newest + slope * distance / (1 - torch.where(usable, ratio, 0))


@dataclass(frozen=True, kw_only=True)
class TCPade:
    """Predict as TC-Pade, arXiv 2603.02943, approximately: parts of the method were not found in public sources.

    R_1, R_2, R_3 are the last three values, newest first, and s = exp(-sharpness |R_1 - R_2| / |R_1 + R_2|) per sample.
    The middle of the trajectory predicts (2 s R_3 - s R_2) / (1 + (s / sharpness) R_1) in every channel, its beginning
    alpha R_1 + (1 - alpha) R_2, and its end adds beta (R_1 - R_2) to the middle's rule. Only true values enter here.

    Args:
        num_steps: T; the first 0.3 T steps are the beginning, the last 0.2 T the end.
        alpha, beta: not found, so they have no default.
        sharpness: lambda.
        order: "printed" as above, or "newest-first" with R_1 and R_3 exchanged: the printed numerator extrapolates
            towards older values.
        least: where the denominator is smaller than this in size, the newest value is taken (ours).

    Raises:
        ValueError: no steps, or a sharpness or least denominator that is not positive.
    """

    label = Label(2, 0, "tc-pade")
    num_anchors = 3
    waits = 0

    num_steps: int
    alpha: float
    beta: float
    sharpness: float = 10.0
    order: Literal["printed", "newest-first"] = "printed"
    least: float = 1e-3

    def __post_init__(self) -> None:
        for name in ("num_steps", "sharpness", "least"):
            if not getattr(self, name) > 0:
                raise ValueError(f"TCPade: {name} must be positive, got {getattr(self, name)}")

    def predict(
        self, anchors: Sequence[int], values: Sequence[Tensor], step: int, *, grid: Grid | None = None
    ) -> Tensor:
        """With two values the rule of the beginning holds throughout; a single one is reused."""
        del grid
        if len(values) == 1:
            return combine_values(values, (1.0,))
        if len(values) == 2 or step < 0.3 * self.num_steps:
            return combine_values(values[:2], (self.alpha, 1 - self.alpha))
        newest, middle, oldest = (combine_values([value], (1.0,)) for value in values)  # (B, N, D)
        turn, size = (
            torch.linalg.vector_norm(difference, dim=(1, 2), keepdim=True)
            for difference in (newest - middle, newest + middle)
        )
        s = torch.exp(-self.sharpness * turn / size.clamp(min=torch.finfo(size.dtype).tiny))  # (B, 1, 1)
        top, bottom = (oldest, newest) if self.order == "printed" else (newest, oldest)
        denominator = 1 + s / self.sharpness * bottom
        safe = denominator.abs() >= self.least
        rational = torch.where(safe, s * (2 * top - middle) / torch.where(safe, denominator, 1), newest)
        return rational + (self.beta * (newest - middle) if step > 0.8 * self.num_steps else 0)
