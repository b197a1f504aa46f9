"""The cheapest mask by dynamic programming over the last three anchors.

A state is (a, g, h): the newest anchor at step a, the one before it g steps earlier, and the one before that h steps
earlier still; 0 stands for "there is none". It determines every predictor until the next anchor, up to order 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tapstudy.analysis.teacher_forced import anchors_at
from tapstudy.predictors.family import Family

Array = NDArray[np.float64]
Rule = Literal["sum", "minimax"]
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


def best_path(windows: Array, passes: int, *, rule: Rule = "sum") -> tuple[tuple[int, ...], float]:
    """Return the best mask of `passes` full steps, a path from anchor to anchor, and its cost.

    Args:
        windows: cost of the steps from an anchor to the next one k + 1 steps later, or to the end, by the state of that
            anchor, (a, g, h, k), at least 0; infinite where there is none. No window is longer than the last dimension.
        rule: "sum" takes the path of the least sum; "minimax" the one whose worst window is best, of several the one
            whose second worst is, and so on. Its cost is that of the worst window.

    Raises:
        ValueError: the full steps cannot reach over all steps.
    """
    count, longest = windows.shape[0], windows.shape[-1]
    cost = np.full((*windows.shape[:3], 1 if rule == "sum" else passes), np.inf)  # the sum; or windows, worst first
    cost[0, 0, 0] = 0
    origins: list[NDArray[np.intp]] = []
    for _ in range(passes - 1):
        reached = _joined(cost[..., None, :], windows, rule)  # (a, g, h, k, value)
        third = _first_least(reached, 2)  # (a, g, k): the best h
        least = np.take_along_axis(reached, third[:, :, None, :, None], axis=2)[:, :, 0]
        cost = np.full_like(cost, np.inf)
        for k in range(longest):
            # state (a, g, h) -> (a + k + 1, k + 1, g)
            cost[k + 1 :, k + 1, :] = least[: count - k - 1, :, k]
        origins.append(third)
    ends = np.arange(max(0, count - longest), count)
    final = _joined(cost[ends], windows[ends, :, :, count - ends - 1], rule)
    chosen = int(_first_least(final.reshape(-1, final.shape[-1]), 0))
    total = float(final.reshape(-1, final.shape[-1])[chosen, 0])
    if not np.isfinite(total):
        raise ValueError(f"no mask of {passes} full steps at most {longest} apart reaches over {count} steps")
    where, gap, before = np.unravel_index(chosen, final.shape[:3])
    state = int(ends[where]), int(gap), int(before)
    mask = [state[0]]
    for third in reversed(origins):
        earlier = state[0] - state[1]
        state = earlier, state[2], int(third[earlier, state[2], state[1] - 1])
        mask.append(earlier)
    return tuple(reversed(mask)), total


def _joined(cost: Array, windows: Array, rule: Rule) -> Array:
    """Add a window to the cost of every path, (..., value)."""
    if rule == "sum":
        return cost + windows[..., None]
    shape = (*np.broadcast_shapes(cost.shape[:-1], windows.shape), cost.shape[-1])
    together = np.concatenate([np.broadcast_to(cost, shape), windows[..., None]], axis=-1)
    return -np.sort(-together, axis=-1)[..., :-1]  # paths have as many windows as values, and the others are 0


def _first_least(values: Array, axis: int) -> NDArray[np.intp]:
    """Return where values (..., value) are least along an axis: by the first value, on a tie by the second, ..."""
    least = np.ones(values.shape[:-1], dtype=bool)
    for value in np.moveaxis(values, -1, 0):
        found = np.where(least, value, np.inf)
        least &= found == found.min(axis=axis, keepdims=True)
    return np.asarray(least.argmax(axis=axis))
