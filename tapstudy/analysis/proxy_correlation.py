"""Does the probe rank the predictors as the truth does?"""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.floating]


def within_token_spearman(scores: xr.Dataset) -> xr.DataArray:
    """Spearman correlation of proxy loss and true error over distinct predictors, for every sample, step and token.

    Predictors whose losses and errors are identical at a step (order 0 at every horizon, say) count once. NaN where
    fewer than three predictors differ, and at full steps.

    Args:
        scores: with `proxy_loss` and `true_error` (..., step, ..., predictor) and `is_distinct` (step, predictor).
    """
    steps = []
    for step in scores["step"].values:
        at = scores.sel(step=step)
        kept = at.isel(predictor=at["is_distinct"].values.nonzero()[0])
        steps.append(
            xr.apply_ufunc(
                _spearman, kept["proxy_loss"], kept["true_error"], input_core_dims=[["predictor"], ["predictor"]]
            )
        )
    rho = xr.concat(steps, dim="step", coords="minimal", compat="override").assign_coords(scores["step"].coords)
    return rho.rename("spearman").assign_attrs(long_name="rank correlation of proxy loss and true error", units="1")


def _spearman(proxy: Array, truth: Array) -> Array:
    """Over the last axis; ties get their mean rank."""
    if proxy.shape[-1] < 3:
        return np.full(proxy.shape[:-1], np.nan)
    a, b = rankdata(proxy, axis=-1), rankdata(truth, axis=-1)  # a NaN anywhere makes the whole row NaN
    a, b = a - a.mean(axis=-1, keepdims=True), b - b.mean(axis=-1, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=-1) * (b * b).sum(axis=-1))
    return (a * b).sum(axis=-1) / np.where(norm > 0, norm, np.nan)
