"""Extrapolate as Taylor does, with gains that each token fits on its own past.

The forecast is F_0 + sum_(m=1..M) c_m E_m, where E_m is the m-th term of Newton's extrapolation from the newest anchor.
The gains c are those with which the same rule, one anchor earlier, would have met the newest anchor best: they minimise
|F_0 - F_1 - sum_m c_m E'_m|^2 + ridge |c - 1|^2 over the token's channels. A slope that tends to die out gets a gain
below 1; c = 1 is the polynomial through the anchors. Our own construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from tapstudy.core.transfer import onto
from tapstudy.core.weights import Row, extrapolation_row
from tapstudy.predictors.family import Label
from tapstudy.predictors.nonlinear import Grid, combine_values, token_gram
from tapstudy.predictors.regression import damped


@dataclass(frozen=True)
class TokenLeastSquares:
    """Fit gains on the terms of orders 1 .. `order`, one set per token. With too few anchors the order is capped.

    Args:
        order: M; needs M + 2 anchors.
        ridge: penalty on gains other than 1, in units of the mean square of the terms.

    Raises:
        ValueError: an order below 1, a negative ridge.
    """

    waits = 1  # for eigenvalues, in the pseudo-inverse

    order: int = 1
    ridge: float = 1e-3

    def __post_init__(self) -> None:
        if self.order < 1 or not self.ridge >= 0:
            raise ValueError(
                f"TokenLeastSquares: order must be at least 1 and ridge at least 0, got {self.order} and {self.ridge}"
            )

    @property
    def label(self) -> Label:
        return Label(self.order, 0, "token-least-squares")

    @property
    def num_anchors(self) -> int:
        return self.order + 2

    def predict(
        self, anchors: Sequence[int], values: Sequence[Tensor], step: int, *, grid: Grid | None = None
    ) -> Tensor:
        """One anchor is reused, from two a line is drawn."""
        del grid
        order = min(self.order, len(anchors) - 2)
        if order < 1:
            return combine_values(values, extrapolation_row(anchors, len(anchors) - 1, step - anchors[0]))
        gains = self._gains(token_gram(values), anchors, order)  # (B, N, M)
        terms = onto(torch.tensor(_terms(anchors, order, step), dtype=gains.dtype), gains.device)  # (M, J)
        newest = torch.eye(len(anchors), dtype=gains.dtype, device=gains.device)[0]  # (J,)
        return combine_values(values, newest + gains @ terms)

    def _gains(self, gram: Tensor, anchors: Sequence[int], order: int) -> Tensor:
        before = [(0.0, *row) for row in _terms(anchors[1:], order, anchors[0])]  # E' never sees the newest anchor
        terms = onto(torch.tensor(before, dtype=gram.dtype), gram.device)  # (M, J)
        unit = torch.eye(len(anchors), dtype=gram.dtype, device=gram.device)
        move = unit[0] - unit[1]  # F_0 - F_1, (J,)
        normal = terms @ gram @ terms.T  # (B, N, M, M)
        right = (terms @ gram @ move).unsqueeze(-1)  # (B, N, M, 1)
        ones = torch.ones_like(right)
        # the pseudo-inverse leaves gains at 1 where a token's terms vanish
        inverse = torch.linalg.pinv(damped(normal, self.ridge), hermitian=True)
        return (ones + inverse @ (right - normal @ ones)).squeeze(-1)


def _terms(anchors: Sequence[int], order: int, step: int) -> list[Row]:
    """Make the rows of the terms of orders 1 .. order of Newton's extrapolation to `step`."""
    sums = [
        extrapolation_row(anchors, m, step - anchors[0], differences="divided", basis="newton")
        for m in range(order + 1)
    ]
    return [tuple(b - a for a, b in zip(lower, upper, strict=True)) for lower, upper in pairwise(sums)]
