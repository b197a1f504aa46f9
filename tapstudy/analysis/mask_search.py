"""The cheapest mask by dynamic programming over the last three anchors.

A state is (a, g, h): the newest anchor at step a, the one before it g steps earlier, and the one before that h steps
earlier still; 0 stands for "there is none". It determines every predictor until the next anchor, up to order 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from tapstudy.analysis.teacher_forced import anchors_at
from tapstudy.predictors.family import Family

Array = NDArray[np.float64]
MAX_ANCHORS = 3


def mask_cost(gram: Array, family: Family, weights: Array, mask: Sequence[int]) -> float:
    """Sum over the skip steps of weight times squared error, of the family's best predictor at each step.

    Args:
        gram: inner products of the features at all pairs of steps, (step, step).
        weights: (step,).
    """
    total = 0.0
    for step in set(range(len(gram))) - set(mask):
        anchors = anchors_at(step, mask, family.num_anchors)
        rows = np.array(family.rows(anchors, step))  # (P, J)
        total += weights[step] * float(_squares(gram, np.array([step, *anchors]), rows).min())
    return total


def skip_errors(gram: Array, family: Family, weights: Array, *, longest: int) -> Array:
    """Return weight times squared error of the family's best predictor, for every state and distance.

    Returns:
        (a, g, h, k): at step a + k, from the state (a, g, h); infinite where there is no such state or step.
        Shape (T, longest + 1, longest + 1, longest): 52 MB for 50 steps without a longest gap.

    Raises:
        ValueError: a family with more than three anchors.
    """
    if family.num_anchors > MAX_ANCHORS:
        raise ValueError(f"best_mask knows families of at most {MAX_ANCHORS} anchors, got {family.num_anchors}")
    count = len(gram)
    errors = np.full((count, longest + 1, longest + 1, longest), np.inf)

    @cache
    def rows_of(anchors: tuple[int, ...]) -> Array:
        """Return (k, P, J) for k = 1, 2, .. as far as they can be needed."""
        return np.array([family.rows(anchors, k) for k in range(1, min(longest, count + anchors[-1]))])

    for gap in range(longest + 1):
        for before in range(longest + 1 if gap else 1):
            oldest = gap + before
            # without a third anchor the oldest one is step 0, where every mask begins
            newest = np.arange(oldest, count if before else min(oldest + 1, count))
            distances = np.arange(1, min(longest, count - oldest))
            if not len(newest):
                continue
            errors[newest, gap, before, 0] = 0  # the anchor itself
            if not len(distances):
                continue
            anchors = (0, -gap, -oldest)[: 1 + (gap > 0) + (before > 0)][: family.num_anchors]
            steps = newest[:, None] + distances  # (a, k)
            there = steps < count
            which = np.stack([np.minimum(steps, count - 1), *(newest[:, None] + at + 0 * steps for at in anchors)], -1)
            squares = _squares(gram, which, rows_of(anchors)[: len(distances)]).min(axis=-1)  # (a, k)
            weighted = squares * weights[np.minimum(steps, count - 1)]
            errors[newest, gap, before, 1 : 1 + len(distances)] = np.where(there, weighted, np.inf)
    return errors


def _squares(gram: Array, which: NDArray[np.intp], rows: Array) -> Array:
    """Turn |sum_j w_j X_j - X|^2 for steps (..., [X, X_1, .., X_J]) and rows (..., P, J) into (..., P)."""
    error = np.concatenate([np.full((*rows.shape[:-1], 1), -1.0), rows], axis=-1)  # (..., P, J + 1)
    part = gram[which[..., :, None], which[..., None, :]]  # (..., J + 1, J + 1)
    return np.maximum(((error @ part) * error).sum(axis=-1), 0)


def cheapest_mask(errors: Array, passes: int) -> tuple[tuple[int, ...], float]:
    """Return the mask of `passes` full steps with the least cost, and its cost.

    Args:
        errors: of `skip_errors`; no gap is longer than its last dimension.

    Raises:
        ValueError: the full steps cannot reach over all steps.
    """
    count, longest = errors.shape[0], errors.shape[-1]
    # (a, g, h, k): cost of the steps between a and a next anchor k + 1 steps later
    between = np.cumsum(errors, axis=-1)
    cost = np.full(errors.shape[:3], np.inf)
    cost[0, 0, 0] = 0
    origins: list[NDArray[np.intp]] = []
    for _ in range(passes - 1):
        reached = cost[..., None] + between  # (a, g, h, k)
        third = reached.argmin(axis=2)  # (a, g, k): the best h
        least = np.take_along_axis(reached, third[:, :, None], axis=2)[:, :, 0]
        cost = np.full_like(cost, np.inf)
        for k in range(longest):
            # state (a, g, h) -> (a + k + 1, k + 1, g)
            cost[k + 1 :, k + 1, :] = least[: count - k - 1, :, k]
        origins.append(third)
    ends = np.arange(max(0, count - longest), count)
    final = cost[ends] + between[ends, :, :, count - ends - 1]
    if not np.isfinite(final.min()):
        raise ValueError(f"no mask of {passes} full steps at most {longest} apart reaches over {count} steps")
    where, gap, before = np.unravel_index(final.argmin(), final.shape)
    state = int(ends[where]), int(gap), int(before)
    mask = [state[0]]
    for third in reversed(origins):
        earlier = state[0] - state[1]
        state = earlier, state[2], int(third[earlier, state[2], state[1] - 1])
        mask.append(earlier)
    return tuple(reversed(mask)), float(final.min())
