"""The best full steps when what counts is the error that a whole window adds to the state.

`analysis.schedules.best_mask` sums squared errors over skip steps. But along a window the errors of one predictor
point the same way, and the solver adds them up: x moves by sum_i (sigma_(i+1) - sigma_i) e_i. Here the cost of a
window is the square of that sum, teacher-forced, and the cost of a mask the sum over its windows. All of it follows
from the inner products of the steps. The search is the dynamic program of `analysis.mask_search` over the last three
anchors.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from tapstudy.analysis.mask_search import Rule, best_path, skip_errors
from tapstudy.predictors.family import Family
from tapstudy.predictors.taylor import TaylorFamily

Array = NDArray[np.float64]


def best_window_mask(
    gram: Array,
    lengths: Array,
    passes: int,
    *,
    amplification: Array | None = None,
    family: Family | None = None,
    ridge: float = 1e-6,
    rule: Rule = "sum",
) -> tuple[int, ...]:
    """Return the mask of least cost among those with windows of at most three times the mean one, rounded up.

    Args:
        gram: inner products of the features at all pairs of steps, (step, step).
        lengths: of the solver's steps, (step,).
        passes: number of full steps.
        amplification: by how much an error of the state after each step grows until the end, (step,); 1 by default.
        family: its first member predicts, from at most three anchors; None: every skip step has least-squares weights
            of its own over the last three anchors, as `fit_rows` makes them.
        ridge: as in `fit_rows`.
        rule: of `best_path`.

    Raises:
        ValueError: no such mask.
    """
    count = len(gram)
    if not 1 <= passes <= count:
        raise ValueError(f"a mask of {count} steps has between 1 and {count} full ones, got {passes}")
    longest = min(count, 3 * -(-count // passes))
    errors = window_errors(gram, lengths, family=family, ridge=ridge, longest=longest)
    if amplification is not None:
        errors *= amplification[:, None, None, None] ** 2  # a window's is that of the full step it begins with
    return best_path(errors, passes, rule=rule)[0]


def lemica_mask(gram: Array, lengths: Array, passes: int, amplification: Array) -> tuple[int, ...]:
    """Return the mask whose worst window moves the image least, of those the one whose second worst does, and so on.

    Source: LeMiCa (arXiv 2511.00090): edges of a graph of steps carry the error of the final image when that window
    alone is reused. Approximate: it samples anew for every edge; here an edge is the error that the window adds to the
    state, from recordings, times its growth until the end.

    Args:
        gram, lengths, amplification: as in `best_window_mask`, of what the solver sees.
        passes: number of full steps.
    """
    reuse = TaylorFamily(orders=(0,), shifts=(0,))
    return best_window_mask(gram, lengths, passes, amplification=amplification, family=reuse, rule="minimax")


def dpcache_mask(gram: Array, passes: int, *, warmup: int = 3) -> tuple[int, ...]:
    """Return the mask of the least sum of errors of skipped features, which depend on the last two full steps.

    Source: DPCache (arXiv 2602.22654): the cost of skipping from one full step to the next, given the one before, and
    the first three steps in full. Approximate: its norm is not known; here errors are squares, of Taylor order 1.

    Args:
        gram: inner products of the features at all pairs of steps, (step, step).
        passes: number of full steps.
        warmup: the first so many of them follow one another.
    """
    order1 = TaylorFamily(orders=(1,), shifts=(0,))
    windows = skip_errors(gram, order1, np.ones(len(gram)), longest=len(gram)).cumsum(axis=-1)
    windows[: min(warmup, passes) - 1, ..., 1:] = np.inf
    return best_path(windows, passes)[0]


def window_errors(
    gram: Array, lengths: Array, *, longest: int, family: Family | None = None, ridge: float = 1e-6
) -> Array:
    """Tell the cost of every window: the square of the error that it adds to the state.

    Returns:
        (a, g, h, k): of the steps up to a + k, with anchors at a, a - g and a - g - h (0: there is none). Infinite
        where there is no such state or step. Shape (T, longest + 1, longest + 1, longest). See `best_path`.
    """
    count = len(gram)
    errors = np.full((count, longest + 1, longest + 1, longest), np.inf)

    @cache
    def family_rows(distances: tuple[int, ...], steps: int) -> Array:
        """Return (k, J) for k = 1 .. steps."""
        assert family is not None
        found = [family.rows(distances[: family.num_anchors], k)[0] for k in range(1, steps + 1)]
        return np.array([(*row, *(0.0 for _ in distances[len(row) :])) for row in found])

    for newest in range(count):
        targets = np.arange(newest + 1, min(newest + longest, count))
        steps = lengths[targets]  # (K,)
        inner = gram[np.ix_(targets, targets)] * np.outer(steps, steps)  # (K, K)
        truth = np.diagonal(inner.cumsum(axis=0).cumsum(axis=1))  # |sum of the true steps|^2, (K,)
        for gap in range(min(newest, longest) + 1):
            for before in range(min(newest - gap, longest) + 1) if gap else (0,):
                if before == 0 and newest != gap:  # without a third anchor the oldest one is step 0
                    continue
                anchors = np.array([newest, newest - gap, newest - gap - before])[: 1 + (gap > 0) + (before > 0)]
                errors[newest, gap, before, 0] = 0  # the anchor itself
                if not len(targets):
                    continue
                normal, right = gram[np.ix_(anchors, anchors)], gram[np.ix_(anchors, targets)]  # (J, J), (J, K)
                if family is None:
                    rows = _fitted(normal, right, ridge)  # (K, J)
                else:
                    rows = family_rows(tuple((anchors - newest).tolist()), len(targets))
                moved = (rows * steps[:, None]).cumsum(axis=0)  # (K, J)
                along = (right * steps).cumsum(axis=1).T  # (K, J)
                cost = ((moved @ normal) * moved).sum(axis=1) - 2 * (moved * along).sum(axis=1) + truth  # (K,)
                errors[newest, gap, before, 1 : 1 + len(targets)] = np.maximum(cost, 0)
    return errors


def _fitted(normal: Array, right: Array, ridge: float) -> Array:
    """Return the least-squares row of every target, (target, J)."""
    damped = normal + ridge * np.trace(normal) / len(normal) * np.eye(len(normal))
    rows = np.linalg.lstsq(damped, right - normal[:, :1], rcond=None)[0]  # (J, target)
    rows[0] += 1
    return rows.T
