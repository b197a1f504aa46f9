"""Fit weights over the anchors by least squares: curves through their times, or the features themselves."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from tapstudy.core.weights import Row


def regression_row(
    design: Sequence[Sequence[float]], target: Sequence[float], *, ridge: float, unpenalised: int = 0
) -> Row:
    """Compute the row w = target (X'X + ridge P)^-1 X', with P the identity but for the coefficients left free.

    The fitted curve at a step is linear in the values that it was fitted to, hence a row.

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


def fitted_row(products: Tensor, ridge: float) -> Row:
    """Compute the row of least squared error on recorded features, shrunk towards reuse.

    Args:
        products: inner products of J anchors, newest first, and the truth, (J + 1, J + 1), float64.
        ridge: times the mean square of the anchors, the penalty on |w - (1, 0, ..)|^2.
    """
    normal, right = products[:-1, :-1], products[:-1, -1]
    reuse = torch.zeros_like(right)
    reuse[0] = 1
    change = torch.linalg.lstsq(damped(normal, ridge), (right - normal @ reuse)[:, None], driver="gelsd").solution
    return tuple((reuse + change[:, 0]).tolist())


def damped(normal: Tensor, ridge: float) -> Tensor:
    """Add `ridge` times their mean to the diagonal elements of the matrices (..., J, J)."""
    mean = normal.diagonal(dim1=-2, dim2=-1).mean(dim=-1)[..., None, None]
    return normal + ridge * mean * torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)


def fitting_steps(
    name: str, gram: Tensor, full_steps: Collection[int], num_anchors: int, ridge: float = 0.0
) -> tuple[list[int], dict[int, list[int]]]:
    """Check what weights are to be fitted on, and list the full steps, and the anchors of every skip step after them.

    Args:
        name: of who fits, for messages.
        gram: inner products of the recorded steps, (step, step).
        full_steps: the schedule.
        num_anchors: how many of the last full steps a prediction uses.
        ridge: of the fit.

    Raises:
        ValueError: an invalid Gram matrix, full steps beyond it, no anchors, or a negative ridge.
    """
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.isfinite().all():
        raise ValueError(f"{name}: gram must be a finite square (step, step), got {tuple(gram.shape)}")
    full = sorted(full_steps)
    if not full or full[0] < 0 or full[-1] >= len(gram):
        raise ValueError(f"{name}: full steps must lie in 0..{len(gram) - 1}, got {full}")
    if num_anchors < 1 or not ridge >= 0:
        raise ValueError(
            f"{name} needs num_anchors of at least 1 and ridge of at least 0, got {num_anchors} and {ridge}"
        )
    skipped = (step for step in range(full[0], len(gram)) if step not in full)
    return full, {step: [at for at in reversed(full) if at < step][:num_anchors] for step in skipped}
