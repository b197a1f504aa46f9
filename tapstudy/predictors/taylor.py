"""Extrapolate by Taylor polynomials, orders x horizons: the family of TAP.

Predictor (m, s) extrapolates sum_(j<=m) D_j k_p^j / j! with horizon k_p = k - s, where k is the distance to the last
anchor. Source: TAP, arXiv 2603.03792; the differences are those of TaylorSeer, arXiv 2503.06923.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tapstudy.core.weights import Basis, Differences, Row, extrapolation_row
from tapstudy.predictors.family import Label, labels_of

Clip = Literal["zero", "one"] | None


@dataclass(frozen=True)
class TaylorFamily:
    """Combine orders x shifts, lowest order first and, within an order, the longest horizon first.

    Args:
        orders: polynomial orders m.
        shifts: s in the horizon k - s.
        clip: horizons below 0 are kept (None) or raised to 0 ("zero"), or all horizons below 1 to 1 ("one").
    """

    orders: tuple[int, ...] = (0, 1, 2)
    shifts: tuple[float, ...] = (0, 1, 2, 3, 4)
    differences: Differences = "recursive"
    basis: Basis = "taylor"
    clip: Clip = None

    @property
    def labels(self) -> tuple[Label, ...]:
        return labels_of(self.orders, self.shifts)

    @property
    def num_anchors(self) -> int:
        return max(self.orders) + 1

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row per label. With fewer anchors than an order needs, the highest order there is takes its place."""
        return [
            extrapolation_row(
                anchors,
                min(label.order, len(anchors) - 1),
                self._clipped(step - anchors[0] - label.shift),
                differences=self.differences,
                basis=self.basis,
            )
            for label in self.labels
        ]

    def _clipped(self, horizon: float) -> float:
        if self.clip is None:
            return horizon
        return max(horizon, 0.0 if self.clip == "zero" else 1.0)
