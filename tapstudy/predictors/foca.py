"""Forecast, then calibrate, as FoCa, arXiv 2508.16211: a BDF2 predictor and a Heun corrector on the last values.

With one step between values, F_k and F_(k-1) the last two, and F' a slope per step:
predictor  P = 4/3 F_k - 1/3 F_(k-1) + 2/3 F'_k;
corrector  F_(k+1) = F_k + (F'_full + F'_(k+1)) / 2, F'_full the slope between the last two full steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tapstudy.core.weights import Row
from tapstudy.predictors.family import Label
from tapstudy.predictors.recursion import combine, unroll


@dataclass(frozen=True)
class FoCa:
    """Make one predictor, on values of which those at skip steps are predictions.

    Approximate: how the slopes are discretised was not found in the paper. F'_(k+1) is P - F_k here, so that with the
    two-point slope F_(k+1) = F_k + (F'_full + F_k - F_(k-1)) / 2.

    Args:
        slope: F'_k from the last "three-point" values, which makes P = 7/3 F_k - 5/3 F_(k-1) + 1/3 F_(k-2) (the
            weights that L2P, arXiv 2604.26365, quotes for FoCa), or "two-point", which makes it 2 F_k - F_(k-1).
        corrector: leave it out and P is the prediction.
        normalise: whether F'_full is per step, or the whole difference of the last two full steps, as in cache-dit's
            first version (two-point).
        window: anchors kept; the recursion starts at the oldest two.

    Raises:
        ValueError: a window below 2.
    """

    labels = (Label(1, 0, "foca"),)

    slope: Literal["three-point", "two-point"] = "three-point"
    corrector: bool = True
    normalise: bool = True
    window: int = 4

    def __post_init__(self) -> None:
        if self.window < 2:
            raise ValueError(f"FoCa: window must be at least 2 (there is no slope at one anchor), got {self.window}")

    @property
    def num_anchors(self) -> int:
        return self.window

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row. A single anchor is reused."""
        return [unroll(anchors, step, self._next)]

    def _next(self, values: Sequence[Row], known: Sequence[tuple[int, Row]]) -> Row:
        if self.slope == "three-point" and len(values) > 2:
            predicted = combine([(7 / 3, values[0]), (-5 / 3, values[1]), (1 / 3, values[2])])
        else:
            predicted = combine([(2.0, values[0]), (-1.0, values[1])])
        if not self.corrector:
            return predicted
        (now, newest), (before, older) = known[:2]
        half = 0.5 / (now - before) if self.normalise else 0.5
        return combine([(0.5, values[0]), (0.5, predicted), (half, newest), (-half, older)])
