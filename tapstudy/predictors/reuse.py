"""Reuse the newest anchor as it is. Source: FORA, arXiv 2407.01425, here on the global residual."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapstudy.core.weights import Row
from tapstudy.predictors.family import Label


@dataclass(frozen=True)
class Reuse:
    """Predict the newest anchor, whatever the horizon: order 0."""

    labels = (Label(0, 0, "reuse"),)
    num_anchors = 1

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """Weight 1 on the newest anchor."""
        del step
        return [(1.0, *(0.0 for _ in anchors[1:]))]
