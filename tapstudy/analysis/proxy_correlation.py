"""Does the probe rank the predictors as the truth does?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.require import require
from tapstudy.analysis.result import described, lazily, means
from tapstudy.analysis.token_measures import MEASURES, token_measures

DEFAULT_MEASURES = ("spearman", "kendall", "pearson", "top1", "regret", "normalised_regret")


def proxy_correlation(scores: xr.Dataset, *, measures: Sequence[str] = DEFAULT_MEASURES) -> xr.Dataset:
    """Agreement of proxy loss and true error over distinct predictors, for every sample, context, step and token.

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
    """Of `proxy_correlation`: every measure, its mean over contexts, skip steps and tokens."""
    return means(found, *map(str, found.data_vars))


def shuffled_proxy(scores: xr.Dataset, *, seed: int) -> xr.Dataset:
    """A control: every token gets the proxy losses of another token of its sample, context and step.

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
    """(..., token, predictor), (...) -> (..., token, predictor)."""
    shuffled = np.empty_like(proxy)
    for index in np.ndindex(proxy.shape[:-2]):
        order = np.random.default_rng([seed, int(stream[index])]).permutation(proxy.shape[-2])  # (token,)
        shuffled[index][order] = proxy[index][np.roll(order, 1)]  # one random cycle: no token keeps its own
    return shuffled
