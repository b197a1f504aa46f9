"""What can be drawn over the image, token by token: the choice, its errors, its regret, the probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.choice_maps import of_the_choice
from tapstudy.analysis.require import require
from tapstudy.analysis.result import described, lazily

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
    choice, errors = recording["choice"], recording["true_error"]

    def along(function: Any, values: xr.DataArray, dim: str, dtype: Any) -> xr.DataArray:
        return lazily(lambda array: function(array).astype(dtype), values, core=(dim,), dtypes=(dtype,))

    def chosen(name: str) -> xr.DataArray:
        return of_the_choice(recording[name].astype(np.float32), choice)

    found = {
        "chosen_order": (chosen("order"), "order of the chosen predictor", "1"),
        "chosen_shift": (chosen("shift"), "shift of the chosen predictor", "steps"),
        "chosen_proxy_loss": (chosen("proxy_loss"), "proxy loss of the choice", "1"),
        "chosen_error": (chosen("true_error"), "true error of the choice", "1"),
        "best": (along(_place_of_least, errors, "predictor", np.int16), "best predictor (-1 at full steps)", "1"),
        "best_error": (
            along(lambda array: array.min(axis=-1), errors, "predictor", np.float32),
            "true error of the best predictor", "1",
        ),
    }  # fmt: skip
    found["regret"] = (found["chosen_error"][0] - found["best_error"][0], "regret of the choice", "1")
    if "probe" in recording:
        probe = recording["probe"].isel(depth=0, drop=True).astype(np.float32)
        norm = along(lambda array: np.linalg.norm(array, axis=-1), probe, "channel", np.float32)
        found["probe_norm"] = (norm, "norm of the probe", "1")
    bare = {name: (values.reset_coords(drop=True), text, unit) for name, (values, text, unit) in found.items()}
    layers = described(bare)
    kept = {name: coord for name, coord in recording.coords.items() if set(coord.dims) <= set(layers.dims)}
    return layers.assign_coords(kept)


def _place_of_least(errors: Array) -> NDArray[np.integer]:
    return np.where(np.isnan(errors).any(axis=-1), -1, errors.argmin(axis=-1))
