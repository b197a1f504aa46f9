"""Fit Chebyshev polynomials to all full steps by ridge regression, as Spectrum, arXiv 2603.01623.

Coefficients C = (X'X + ridge I)^-1 X'F with rows X = [T_0 .. T_M](tau) at the anchors; the forecast is
[T_0 .. T_M](tau) C at the step, and may be blended with linear extrapolation from the last two anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapstudy.core.checks import check_between, check_least
from tapstudy.core.weights import Row, extrapolation_row
from tapstudy.predictors.family import Label
from tapstudy.predictors.regression import regression_row


@dataclass(frozen=True)
class Chebyshev:
    """Make one predictor. The ridge shrinks everything, constants too: the weights sum to less than 1.

    Args:
        degree: M.
        ridge: of the regression; with 0 the degree is capped by the anchors there are.
        blend: part of the fitted curve; the rest is linear extrapolation (Spectrum's default 1, recommended 0.5).
        num_steps: T in tau = 2 i / T - 1, where i counts from the oldest anchor held: as published as long as the
            window holds all full steps, the first of which is step 0. None maps the time from the oldest anchor to
            the predicted step to [-1, 1].
        window: anchors kept (published: 100, that is all).

    Raises:
        ValueError: values out of range.
    """

    degree: int = 4
    ridge: float = 0.1
    blend: float = 1.0
    num_steps: int | None = None
    window: int = 100

    def __post_init__(self) -> None:
        for name, least in (("degree", 0), ("ridge", 0), ("window", 2)):
            check_least(f"Chebyshev: {name}", getattr(self, name), least)
        check_between("Chebyshev: blend", self.blend, 0, 1)

    @property
    def labels(self) -> tuple[Label, ...]:
        return (Label(self.degree, 0, "chebyshev"),)

    @property
    def num_anchors(self) -> int:
        return self.window

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row. A single anchor is reused."""
        if len(anchors) == 1:
            return [(1.0,)]
        length = self.num_steps or step - anchors[-1]
        degree = self.degree if self.ridge else min(self.degree, len(anchors) - 1)
        *design, target = (chebyshev_values(degree, 2 * (at - anchors[-1]) / length - 1) for at in (*anchors, step))
        curve = regression_row(design, target, ridge=self.ridge)
        line = extrapolation_row(anchors, 1, step - anchors[0])
        return [tuple(self.blend * c + (1 - self.blend) * w for c, w in zip(curve, line, strict=True))]


def chebyshev_values(degree: int, x: float) -> list[float]:
    """Compute T_0(x) .. T_degree(x), by T_(n+1) = 2x T_n - T_(n-1)."""
    values = [1.0, x]
    for n in range(1, degree):
        values.append(2 * x * values[n] - values[n - 1])
    return values[: degree + 1]
