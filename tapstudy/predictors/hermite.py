"""Put Taylor's differences on contracted Hermite polynomials, as HiCache, arXiv 2508.16984.

Order m at horizon x predicts sum_(j<=m) D_j / j! * sigma^j H_j(sigma x), with the physicists' polynomials H_0 = 1,
H_1 = 2x, H_(n+1) = 2x H_n - 2n H_(n-1) in place of the powers x^j. With sigma = 1 / sqrt(2) the linear term is
Taylor's; below it slopes are damped. At x = 0 orders of 2 and more do not return the newest anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import factorial

from tapstudy.core.weights import Differences, Row, difference_rows
from tapstudy.predictors.family import Label, check_orders, labels_of


@dataclass(frozen=True)
class HermiteFamily:
    """Combine orders x shifts, lowest order first and, within an order, the longest horizon first.

    Args:
        orders: highest difference that enters.
        shifts: s in the horizon k - s; HiCache has s = 0 only.
        sigma: contraction; the paper has 0.5 for FLUX-dev and 0.3 for FLUX-schnell, FreqCa 0.71.

    Raises:
        ValueError: sigma not positive, an order below 0.
    """

    orders: tuple[int, ...] = (2,)
    shifts: tuple[float, ...] = (0,)
    sigma: float = 0.5
    differences: Differences = "recursive"

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"HermiteFamily: sigma must be positive, got {self.sigma}")
        check_orders("HermiteFamily: orders", self.orders)

    @property
    def labels(self) -> tuple[Label, ...]:
        return labels_of(self.orders, self.shifts, "hermite")

    @property
    def num_anchors(self) -> int:
        return max(self.orders) + 1

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row per label. With fewer anchors than an order needs, the highest order there is takes its place."""
        differences = difference_rows(anchors, min(max(self.orders), len(anchors) - 1), self.differences)
        return [
            self._row(differences[: label.order + 1], self.sigma * (step - anchors[0] - label.shift))
            for label in self.labels
        ]

    def _row(self, differences: list[Row], x: float) -> Row:
        factors = [
            self.sigma**j * value / factorial(j) for j, value in enumerate(hermite_values(len(differences) - 1, x))
        ]
        return tuple(
            sum(factor * weight for factor, weight in zip(factors, weights, strict=True))
            for weights in zip(*differences, strict=True)
        )


def hermite_values(order: int, x: float) -> list[float]:
    """Compute H_0(x) .. H_order(x), the physicists' Hermite polynomials."""
    values = [1.0, 2 * x]
    for n in range(1, order):
        values.append(2 * x * values[n] - 2 * n * values[n - 1])
    return values[: order + 1]
