"""Fit polynomials to more anchors than they need, which averages noise out where interpolation amplifies it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapstudy.core.checks import check_least
from tapstudy.core.weights import Row
from tapstudy.predictors.family import Label, check_orders, labels_of
from tapstudy.predictors.regression import regression_row


@dataclass(frozen=True)
class LeastSquares:
    """Combine degrees x shifts, lowest degree first and, within a degree, the longest horizon first.

    The fit minimises sum_j |p(a_j) - F_j|^2 + ridge * sum_(i>=1) |c_i|^2, with p(t) = sum_i c_i t^i and t measured from
    the newest anchor in units of the distance to the oldest. The constant is free, so constants are reproduced, and a
    large ridge leaves the mean of the anchors.

    Args:
        degrees: of the polynomials.
        window: anchors they are fitted to.
        ridge: penalty on all coefficients but the constant.
        shifts: s in the horizon k - s.

    Raises:
        ValueError: a degree below 0, a window too small for a degree, a negative ridge.
    """

    degrees: tuple[int, ...] = (1, 2)
    window: int = 5
    ridge: float = 0.0
    shifts: tuple[float, ...] = (0,)

    def __post_init__(self) -> None:
        check_orders("LeastSquares: degrees", self.degrees, self.window)
        check_least("LeastSquares: ridge", self.ridge, 0)

    @property
    def labels(self) -> tuple[Label, ...]:
        return labels_of(self.degrees, self.shifts, "least-squares")

    @property
    def num_anchors(self) -> int:
        return self.window

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row per label. With fewer anchors than a degree needs, the highest degree there is takes its place."""
        span = max(anchors[0] - anchors[-1], 1)
        times = [(anchor - anchors[0]) / span for anchor in anchors]
        rows = []
        for label in self.labels:
            powers = range(min(label.order, len(anchors) - 1) + 1)
            now = (step - anchors[0] - label.shift) / span
            rows.append(
                regression_row(
                    [[time**power for power in powers] for time in times],
                    [now**power for power in powers],
                    ridge=self.ridge,
                    unpenalised=1,
                )
            )
        return rows
