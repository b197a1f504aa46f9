"""Quantities per token, put together by what the tokens show."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.require import require

QUANTILES = (0.25, 0.5, 0.75)


def by_class(values: xr.DataArray, content: xr.Dataset) -> xr.DataArray:
    """Return quartiles of a quantity over the tokens of a class, images and contexts together, (class, quantile, step);
    classes without tokens and steps without values are left out.

    Quartiles describe how tokens scatter. They are no interval of a mean: tokens of an image are not independent.

    Args:
        values: (..., step, token); NaN is left out.
        content: from `image_content`, with `token_class` (..., token).

    Raises:
        ValueError: no token classes, or values without steps or tokens.
    """
    names = _check(values, content, "by_class")
    values = values.dropna("step", how="all")
    table = values.transpose("step", ...).values.reshape(values.sizes["step"], -1)  # (step, image and token)
    code = content["token_class"].broadcast_like(values.isel(step=0)).transpose(
        *(dim for dim in values.dims if dim != "step")
    ).values.ravel()  # fmt: skip
    kept = [index for index in range(len(names)) if (code == index).any()]
    found = [[_quantiles(step[code == index]) for step in table] for index in kept]  # (class, step, quantile)
    return xr.DataArray(
        np.array(found).reshape(len(kept), len(table), len(QUANTILES)), dims=("token_class", "step", "quantile"),
        coords={"token_class": [names[index] for index in kept], "step": values["step"].values,
                "quantile": list(QUANTILES)},
        attrs=values.attrs,
    ).transpose("token_class", "quantile", "step")  # fmt: skip


def shares_by_class(values: xr.DataArray, content: xr.Dataset) -> xr.DataArray:
    """Tell how often each integer value occurs among the tokens of a class, over all steps, (class, value).

    Args:
        values: (..., step, token), integers such as effective orders; NaN is left out.
        content: from `image_content`.

    Returns:
        Shares of every class add up to 1; NaN for a class without tokens.
    """
    names = _check(values, content, "shares_by_class")
    found = values.values
    code = content["token_class"].broadcast_like(values).transpose(*values.dims).values
    kinds = np.unique(found[np.isfinite(found)]).astype(int)
    rows = [_shares(found[code == index], kinds) for index in range(len(names))]
    attrs = {"long_name": f"share of tokens and steps, by {values.attrs.get('long_name', values.name)}", "units": "1"}
    return xr.DataArray(np.stack(rows), dims=("token_class", "value"), attrs=attrs,
                        coords={"token_class": names, "value": kinds})  # fmt: skip


def _check(values: xr.DataArray, content: xr.Dataset, analysis: str) -> list[str]:
    """Return the names of the classes."""
    require(content, analysis, token_class=("token",))
    require(values.to_dataset(name="values"), analysis, values=("step", "token"))
    return str(content["token_class"].attrs["flag_meanings"]).split()


def _shares(values: NDArray[np.floating], kinds: NDArray[np.integer]) -> NDArray[np.floating]:
    values = values[np.isfinite(values)]
    if not len(values):
        return np.full(len(kinds), np.nan)
    return np.array([(values == kind).mean() for kind in kinds])


def _quantiles(values: NDArray[np.floating]) -> NDArray[np.floating]:
    values = values[np.isfinite(values)]
    return np.quantile(values, QUANTILES) if len(values) else np.full(len(QUANTILES), np.nan)
