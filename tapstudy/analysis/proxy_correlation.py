"""Does the probe rank the predictors as the truth does?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.require import require
from tapstudy.analysis.result import described, lazily, means

DEFAULT_MEASURES = ("spearman", "kendall", "pearson", "top1", "regret", "normalised_regret")


def proxy_correlation(scores: xr.Dataset, *, measures: Sequence[str] = DEFAULT_MEASURES) -> xr.Dataset:
    """Compare proxy loss and true error over distinct predictors, for every sample, context, step and token.

    Predictors whose losses and errors are identical at a step (order 0 at every horizon, say) count once.

    `spearman`, `kendall` (tau-b), `pearson` and `log_pearson` (of the logs) are NaN where fewer than three predictors
    differ. `top1`: whether the predictor of least proxy loss is that of least true error. `regret`: the true error of
    the one minus that of the other. `normalised_regret`: regret over the mean regret of all distinct predictors, so
    0 is the best choice and 1 a random one; NaN where all are equally good. These three need two predictors. All are
    NaN at full steps. Ties go to the first predictor; scores kept in half precision tie where the run saw none.

    Args:
        scores: with `proxy_loss` and `true_error` (..., step, ..., predictor) and `is_distinct` (..., predictor).
        measures: which of the above.

    Returns:
        One variable per measure with the dimensions of `proxy_loss` but `predictor`, lazy if `scores` is; compute
        them together. `distance` becomes a coordinate.

    Raises:
        ValueError: an unknown measure, or variables that are missing.
    """
    unknown = [name for name in measures if name not in MEASURES]
    if unknown or not measures:
        raise ValueError(f"proxy_correlation: unknown measures {unknown}: choose from {list(MEASURES)}")
    predictor = ("predictor",)
    require(scores, "proxy_correlation", proxy_loss=predictor, true_error=predictor, is_distinct=predictor)
    found = lazily(
        _measures, scores["proxy_loss"], scores["true_error"], _distinct(scores), core=("predictor",) * 3,
        out=[""] * len(measures), dtypes=[np.float64] * len(measures), kwargs={"measures": tuple(measures)},
    )  # fmt: skip
    arrays = found if isinstance(found, tuple) else (found,)
    dataset = described({name: (array, MEASURES[name], "1") for name, array in zip(measures, arrays, strict=True)})
    return dataset.assign_coords(distance=scores["distance"]) if "distance" in scores.variables else dataset


def correlation_summary(found: xr.Dataset) -> xr.Dataset:
    """Summarise `proxy_correlation`: every measure, its mean over contexts, skip steps and tokens."""
    return means(found, *map(str, found.data_vars))


def shuffled_proxy(scores: xr.Dataset, *, seed: int) -> xr.Dataset:
    """Return a control: every token gets the proxy losses of another token of its sample, context and step.

    What agreement is left is common to the tokens of a step, and no token needs its own probe for it. `choice`, which
    no longer belongs to the losses, is left out. The same seed gives the same permutations, however `scores` is cut
    into chunks.

    Args:
        scores: with `proxy_loss` (..., token, predictor).
    """
    require(scores, "shuffled_proxy", proxy_loss=("token", "predictor"))
    proxy = scores["proxy_loss"]
    leading = [dim for dim in proxy.dims if dim not in ("token", "predictor")]
    sizes = tuple(proxy.sizes[dim] for dim in leading)
    stream = xr.DataArray(np.arange(int(np.prod(sizes))).reshape(sizes), dims=leading)  # one per permutation
    shuffled = lazily(
        _permute_tokens, proxy, stream, core=("token predictor", ""), out=("token predictor",), dtypes=(proxy.dtype,),
        kwargs={"seed": seed}, keep_attrs=False,
    )  # fmt: skip
    attrs = {"long_name": "proxy loss of another token of the step", "units": proxy.attrs.get("units", "1")}
    return scores.drop_vars("choice", errors="ignore").assign(
        proxy_loss=shuffled.transpose(*proxy.dims).assign_attrs(attrs)
    )


def _measures(*arrays: Any, measures: tuple[str, ...]) -> Any:
    found = token_measures(*arrays, measures=measures)
    return found if len(found) > 1 else found[0]


def _distinct(scores: xr.Dataset) -> xr.DataArray:
    distinct = scores["is_distinct"] > 0  # -1 where it was never written, as at full steps
    return distinct & (scores["is_full"] != 1) if "is_full" in scores.variables else distinct


def _permute_tokens(proxy: NDArray[Any], stream: NDArray[Any], *, seed: int) -> NDArray[Any]:
    """Turn (..., token, predictor), (...) into (..., token, predictor)."""
    shuffled = np.empty_like(proxy)
    for index in np.ndindex(proxy.shape[:-2]):
        order = np.random.default_rng([seed, int(stream[index])]).permutation(proxy.shape[-2])  # (token,)
        shuffled[index][order] = proxy[index][np.roll(order, 1)]  # one random cycle: no token keeps its own
    return shuffled


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
