"""What a map of choices looks like in numbers. Knows arrays only, no labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def predictor_share(choice: NDArray[Any], *, predictors: int) -> Array:
    """(..., token) -> (..., predictor), NaN at full steps."""
    share = np.stack([(choice == p).mean(axis=-1) for p in range(predictors)], axis=-1)
    return np.where((choice >= 0).any(axis=-1, keepdims=True), share, np.nan)


def switching(choice: NDArray[Any], anchor: NDArray[Any]) -> tuple[Array, Array]:
    """Share of the tokens whose choice differs from that at the skip step before.

    Args:
        choice: (..., step, token), -1 at full steps.
        anchor: the full step before each step, (..., step).

    Returns:
        (..., step) where that skip step has the same anchor, and (..., step) where it has another; NaN otherwise.
    """
    skipped = (choice >= 0).any(axis=-1)  # (..., step)
    newest = np.maximum.accumulate(np.where(skipped, np.arange(skipped.shape[-1]), -1), axis=-1)  # (..., step)
    before = np.concatenate([np.full_like(newest[..., :1], -1), newest[..., :-1]], axis=-1)  # (..., step)
    known = skipped & (before >= 0)
    before = before.clip(min=0)
    changed = (choice != np.take_along_axis(choice, before[..., None], axis=-2)).mean(axis=-1)  # (..., step)
    same = np.broadcast_to(anchor, skipped.shape) == np.take_along_axis(
        np.broadcast_to(anchor, skipped.shape), before, axis=-1
    )
    return np.where(known & same, changed, np.nan), np.where(known & ~same, changed, np.nan)


def morans_i(maps: Array) -> tuple[Array, Array]:
    """Moran's I of maps with rook neighbours and binary weights, and its mean under permutation, -1 / (N - 1).

    I = N / W sum_ij w_ij z_i z_j / sum_i z_i^2, with z the values minus their mean, W the sum of the weights.

    Args:
        maps: (..., row, col); places that are NaN do not exist.

    Returns:
        Both (...), NaN where the map is constant, or no two neighbours exist.
    """
    exists = ~np.isnan(maps)
    count = exists.sum(axis=(-2, -1))  # N
    varies = (np.where(exists, maps, -np.inf).max((-2, -1)) > np.where(exists, maps, np.inf).min((-2, -1))) & (
        count > 1
    )
    mean = np.where(exists, maps, 0.0).sum(axis=(-2, -1)) / np.maximum(count, 1)
    z = np.where(exists, maps - mean[..., None, None], 0.0)
    products, pairs = (
        (v[..., 1:, :] * v[..., :-1, :]).sum((-2, -1)) + (v[..., 1:] * v[..., :-1]).sum((-2, -1))
        for v in (z, exists.astype(np.float64))
    )
    square = (z * z).sum(axis=(-2, -1))
    defined = varies & (pairs > 0)
    index = count * products / np.where(defined, pairs * square, np.nan)  # each pair counts twice above and below
    return index, -1.0 / np.where(defined, count - 1, np.nan)
