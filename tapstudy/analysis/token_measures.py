"""How well one list of losses ranks another, for many tokens at once. Knows arrays only, no labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Mask = NDArray[np.bool_]

# name -> what it is
MEASURES = {
    "spearman": "Spearman rank correlation of proxy loss and true error",
    "kendall": "Kendall rank correlation (tau-b) of proxy loss and true error",
    "pearson": "Pearson correlation of proxy loss and true error",
    "log_pearson": "Pearson correlation of log proxy loss and log true error",
    "top1": "the predictor of least proxy loss has the least true error",
    "regret": "true error of the choice minus that of the best predictor",
    "normalised_regret": "regret over that of a random choice (0 the best, 1 random)",
}

# The float64 copies of this many losses stay in a processor's cache.
SLAB = 1 << 17


def token_measures(proxy: Array, truth: Array, distinct: Mask, *, measures: Sequence[str]) -> tuple[Array, ...]:
    """Return the measures of every token, over the predictors that are distinct there.

    Args:
        proxy, truth, distinct: (..., predictor), broadcast against each other.
        measures: keys of `MEASURES`.

    Returns:
        One array (...) per measure, float64. NaN where a distinct predictor has no loss, where fewer than three
        (correlations) or two (the others) differ, and where a denominator is zero.
    """
    proxy, truth, distinct = np.broadcast_arrays(proxy, truth, distinct)
    shape, predictors = proxy.shape[:-1], proxy.shape[-1]
    rows = [values.reshape(-1, predictors) for values in (proxy, truth, distinct)]  # (T, P) each
    tokens = len(rows[0])
    found = np.empty((len(measures), tokens))
    size = max(1, SLAB // max(1, predictors))
    for start in range(0, tokens, size):
        part = slice(start, start + size)
        p, t = (np.array(values[part].T, dtype=np.float64) for values in rows[:2])  # (P, slab)
        found[:, part] = _slab_measures(p, t, np.array(rows[2][part].T), measures)
    return tuple(values.reshape(shape) for values in found)


def _slab_measures(proxy: Array, truth: Array, distinct: Mask, measures: Sequence[str]) -> list[Array]:
    """Turn (predictor, token) into (token,) each."""
    count = distinct.sum(axis=0)  # (T,)
    seen = ~((np.isnan(proxy) | np.isnan(truth)) & distinct).any(axis=0)  # (T,)
    found: dict[str, Array] = {}
    if {"spearman", "kendall"} & set(measures):
        found["spearman"], found["kendall"] = _rank_correlations(proxy, truth, distinct)
    with np.errstate(divide="ignore", invalid="ignore"):  # a loss of zero has no log, an infinite one no mean
        if "pearson" in measures:
            found["pearson"] = _pearson(proxy, truth, distinct)
        if "log_pearson" in measures:
            found["log_pearson"] = _pearson(np.log(proxy), np.log(truth), distinct)
        if {"top1", "regret", "normalised_regret"} & set(measures):
            found |= _choice_measures(proxy, truth, distinct)
    return [np.where(seen & (count >= _least(name)), found[name], np.nan) for name in measures]


def _least(name: str) -> int:
    """Tell how many predictors must differ for the measure to mean something."""
    return 2 if name in ("top1", "regret", "normalised_regret") else 3


def _rank_correlations(x: Array, y: Array, distinct: Mask) -> tuple[Array, Array]:
    """Return Spearman's rho and Kendall's tau-b from the signs a_ij = sign(x_i - x_j), b_ij = sign(y_i - y_j).

    Both are sum(a b) / sqrt(sum(a^2) sum(b^2)): tau over the pairs, rho over the row sums of a and b, which are twice
    the ranks (ties at their mean rank) counted from the mean rank. Source: Daniels, 1944.
    """
    rank_x, rank_y = np.zeros(x.shape, np.int32), np.zeros(x.shape, np.int32)
    agree, untied_x, untied_y = (np.zeros(x.shape[1], np.int32) for _ in range(3))
    for i in range(len(x)):
        both = distinct & distinct[i]  # (P, T)
        a, b = (((v[i] > v).astype(np.int8) - (v[i] < v)) * both for v in (x, y))  # (P, T)
        rank_x[i], rank_y[i] = a.sum(axis=0), b.sum(axis=0)
        agree += (a * b).sum(axis=0)
        untied_x += (a != 0).sum(axis=0)
        untied_y += (b != 0).sum(axis=0)
    return _cosine(rank_x.astype(np.float64), rank_y.astype(np.float64)), _ratio(
        agree, np.sqrt(untied_x.astype(np.float64) * untied_y)
    )


def _pearson(x: Array, y: Array, distinct: Mask) -> Array:
    return _cosine(_centred(x, distinct), _centred(y, distinct))


def _centred(x: Array, distinct: Mask) -> Array:
    """Subtract the mean, zero where not distinct; a list of equal values becomes exactly zero."""
    x = np.where(distinct, x, 0.0)
    centred = np.where(distinct, x - x.sum(axis=0) / distinct.sum(axis=0), 0.0)
    return np.where(_spread(x, distinct) > 0, centred, x * 0.0)


def _spread(x: Array, distinct: Mask) -> Array:
    return np.where(distinct, x, -np.inf).max(axis=0) - np.where(distinct, x, np.inf).min(axis=0)


def _choice_measures(proxy: Array, truth: Array, distinct: Mask) -> dict[str, Array]:
    """Tell what the predictor of least proxy loss costs; on a tie it is the first one, as in an accelerated run."""
    chosen = np.where(distinct, proxy, np.inf).argmin(axis=0)  # (T,)
    best = np.where(distinct, truth, np.inf).argmin(axis=0)  # (T,)
    error, least = (np.take_along_axis(truth, index[None], axis=0)[0] for index in (chosen, best))  # (T,)
    mean = np.where(distinct, truth, 0.0).sum(axis=0) / distinct.sum(axis=0)  # of a random choice
    regret = error - least
    random_regret = np.where(_spread(truth, distinct) > 0, mean - least, 0.0)
    return {
        "top1": (chosen == best).astype(np.float64),
        "regret": regret,
        "normalised_regret": _ratio(regret, random_regret),
    }


def _cosine(a: Array, b: Array) -> Array:
    return _ratio((a * b).sum(axis=0), np.sqrt((a * a).sum(axis=0)) * np.sqrt((b * b).sum(axis=0)))


def _ratio(above: Array | NDArray[np.integer], below: Array) -> Array:
    """Divide, NaN over zero."""
    return np.asarray(above / np.where(below > 0, below, np.nan))
