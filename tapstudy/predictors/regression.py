"""Least squares on the anchors, as a row of weights: the fitted curve at a step is linear in what it was fitted to."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tapstudy.core.weights import Row


def regression_row(
    design: Sequence[Sequence[float]], target: Sequence[float], *, ridge: float, unpenalised: int = 0
) -> Row:
    """The row w = target (X'X + ridge P)^-1 X', with P the identity but for the coefficients left free.

    Args:
        design: X, one row of basis functions per anchor, (anchor, basis).
        target: the basis functions at the step to predict, (basis,).
        ridge: at 0 the solution of least norm is taken.
        unpenalised: how many of the first coefficients the ridge leaves free.

    Returns:
        One weight per anchor. Solved as an augmented system, in float64: X'X would square the condition number.
    """
    rows = torch.tensor(design, dtype=torch.float64)  # (J, M)
    anchors, size = rows.shape
    penalty = torch.eye(size, dtype=torch.float64)[unpenalised:] * ridge**0.5  # (M - unpenalised, M)
    given = torch.cat([torch.eye(anchors), torch.zeros(len(penalty), anchors)]).double()  # (J + M - unpenalised, J)
    fitted = torch.linalg.lstsq(torch.cat([rows, penalty]), given, driver="gelsd").solution  # (M, J)
    return tuple((torch.tensor(target, dtype=torch.float64) @ fitted).tolist())
