"""What can be drawn over the image, token by token: the choice, its errors, its regret, the probe."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.require import require

Array = NDArray[np.floating]


def explorer_layers(recording: xr.Dataset) -> xr.Dataset:
    """One value per token and step; NaN where nothing was chosen (full steps).

    Args:
        recording: with `choice` (..., step, token), `proxy_loss` and `true_error` (..., step, token, predictor), the
            coordinates `order` and `shift` on predictor; `probe` (..., step, depth, token, channel) if there.

    Returns:
        float32, (..., step, token), lazy: `chosen_order`, `chosen_shift`, `chosen_proxy_loss`, `chosen_error`,
        `best_error` (of the oracle), `regret` = chosen_error - best_error, and `probe_norm` (L2 over channels, at the
        first depth; also at full steps) if the probe was recorded. int16: `best`, the oracle's choice, the first of
        equals, -1 where nothing was scored.

    Raises:
        ValueError: scores are missing, or lack a dimension.
    """
    scored = ("step", "token", "predictor")
    require(
        recording,
        "explorer_layers",
        choice=("step", "token"),
        proxy_loss=scored,
        true_error=scored,
        order=("predictor",),
        shift=("predictor",),
    )
    choice = recording["choice"]
    found = {
        "chosen_order": _chosen(choice, recording["order"], "order of the chosen predictor", "1"),
        "chosen_shift": _chosen(choice, recording["shift"], "shift of the chosen predictor", "steps"),
        "chosen_proxy_loss": _chosen(choice, recording["proxy_loss"], "proxy loss of the choice", "1"),
        "chosen_error": _chosen(choice, recording["true_error"], "true error of the choice", "1"),
        "best": xr.apply_ufunc(
            _place_of_least,
            recording["true_error"],
            input_core_dims=[["predictor"]],
            dask="parallelized",
            output_dtypes=[np.int16],
        ).assign_attrs(long_name="best predictor (-1 at full steps)", units="1"),
        "best_error": xr.apply_ufunc(
            _least,
            recording["true_error"],
            input_core_dims=[["predictor"]],
            dask="parallelized",
            output_dtypes=[np.float32],
        ).assign_attrs(long_name="true error of the best predictor", units="1"),
    }
    regret = found["chosen_error"] - found["best_error"]
    found["regret"] = regret.assign_attrs(long_name="regret of the choice", units="1")
    if "probe" in recording:
        found["probe_norm"] = xr.apply_ufunc(
            _norm,
            recording["probe"].isel(depth=0, drop=True),
            input_core_dims=[["channel"]],
            dask="parallelized",
            output_dtypes=[np.float32],
        ).assign_attrs(long_name="norm of the probe", units="1")
    layers = xr.Dataset(found).reset_coords(drop=True)
    kept = {name: coord for name, coord in recording.coords.items() if set(coord.dims) <= set(layers.dims)}
    return layers.assign_coords(kept)


def _chosen(choice: xr.DataArray, values: xr.DataArray, long_name: str, units: str) -> xr.DataArray:
    """The value of the chosen predictor, for every token."""
    found = xr.apply_ufunc(
        _pick,
        choice.reset_coords(drop=True),
        values.reset_coords(drop=True),
        input_core_dims=[[], ["predictor"]],
        dask="parallelized",
        output_dtypes=[np.float32],
    )
    return found.assign_attrs(long_name=long_name, units=units)


def _pick(choice: NDArray[np.integer], values: Array) -> Array:
    """choice (...), values (..., predictor) or (predictor): the value at the choice, NaN where it is negative."""
    values = np.broadcast_to(values, (*choice.shape, values.shape[-1]))
    index = np.maximum(choice, 0).astype(np.intp)[..., None]
    picked = np.take_along_axis(values, index, axis=-1)[..., 0]
    return np.where(choice >= 0, picked, np.nan).astype(np.float32)


def _least(errors: Array) -> Array:
    return errors.min(axis=-1).astype(np.float32)


def _place_of_least(errors: Array) -> NDArray[np.int16]:
    return np.where(np.isnan(errors).any(axis=-1), -1, errors.argmin(axis=-1)).astype(np.int16)


def _norm(probe: Array) -> Array:
    return np.linalg.norm(probe.astype(np.float32), axis=-1)
