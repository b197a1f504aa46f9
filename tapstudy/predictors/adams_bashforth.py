"""Predict as AB-Cache, arXiv 2504.10540: alternating binomials over the last values.

From k values f_0, f_1, .., newest first, the next is sum_(j=1..k) (-1)^(j+1) C(k, j) f_(j-1), that is 2 f_0 - f_1 for
k = 2: the polynomial of degree k - 1 through k neighbouring steps, one step further.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb
from typing import Literal

from tapstudy.core.weights import Row, unit_rows
from tapstudy.predictors.family import Label, check_orders, labels_of
from tapstudy.predictors.recursion import Rule, combine, unroll


@dataclass(frozen=True)
class AdamsBashforth:
    """Make one predictor per degree.

    Approximate: whether AB-Cache's predictions enter its history is not known, hence `history`. The gap at a full step
    between truth and prediction looks like a slope to it and is amplified at every skip step that follows.

    Args:
        orders: degrees k - 1; the paper's "order k" is degree k - 1, its main one 1.
        history: "predicted": the values of the last steps, predictions among them. "anchors": the last anchors, taken
            for neighbours whatever their gaps, so that all steps of a window predict the same.
        window: anchors kept for "predicted", which unrolls from the oldest one.

    Raises:
        ValueError: an order below 0, or a window smaller than an order needs.
    """

    orders: tuple[int, ...] = (1,)
    history: Literal["predicted", "anchors"] = "predicted"
    window: int = 6

    def __post_init__(self) -> None:
        check_orders("AdamsBashforth: orders", self.orders, self.window)

    @property
    def labels(self) -> tuple[Label, ...]:
        return labels_of(self.orders, (0,), "adams-bashforth")

    @property
    def num_anchors(self) -> int:
        return self.window if self.history == "predicted" else max(self.orders) + 1

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row per label; with fewer values than an order needs, those there are."""
        if self.history == "predicted":
            return [unroll(anchors, step, _rule(label.order)) for label in self.labels]
        return [_binomial(unit_rows(len(anchors)), label.order) for label in self.labels]


def _rule(order: int) -> Rule:
    return lambda values, _: _binomial(values, order)


def _binomial(values: Sequence[Row], order: int) -> Row:
    count = min(order + 1, len(values))
    return combine([(float((-1) ** j * comb(count, j + 1)), values[j]) for j in range(count)])
