"""Means over groups of tokens, with intervals over images."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.require import require
from tapstudy.analysis.stats import BOUNDS, mean_interval


def image_means(per_token: xr.Dataset, by: str | xr.DataArray) -> xr.Dataset:
    """Return the mean of every variable over the tokens of a group, for every image.

    Args:
        per_token: variables with the dimension `sample`, such as those of `proxy_correlation`; NaN is left out.
        by: the name of a coordinate or dimension (`distance`, `step`, `context`, `depth`), or an array of labels over
            dimensions of the variables (token classes, say); tokens labelled NaN are in no group.

    Returns:
        The variables, (sample, group), in memory; the dimension bears the name of `by`. NaN where an image has no
        value in a group; groups without any value are left out. `num_values` (measure, sample, group) counts tokens.

    Raises:
        ValueError: no such coordinate, or labels that do not fit the variables.
    """
    labels = _labels(per_token, by)
    dim = str(labels.name or "group")
    groups = _unique(labels)
    foreign = [dim for dim in labels.dims if dim not in {dim for v in per_token.data_vars.values() for dim in v.dims}]
    if foreign:
        raise ValueError(f"labels have the dimensions {foreign}, which the variables lack: {dict(per_token.sizes)}")
    labels = labels.drop_vars([name for name in labels.coords if name not in labels.dims])
    parts = {}
    for name, values in per_token.data_vars.items():
        require(per_token, "image_means", **{str(name): ("sample",)})
        values, own = xr.align(values.astype(np.float64), labels, join="exact")
        inner = [dim for dim in values.dims if dim != "sample"]
        of_group = [values.where(own == group) for group in groups]
        parts[f"mean {name}"] = xr.concat([one.mean(inner) for one in of_group], "group")
        parts[f"count {name}"] = xr.concat([one.count(inner) for one in of_group], "group")
    found = xr.Dataset(parts).compute().transpose("sample", "group")
    counts = xr.concat(
        [found[f"count {name}"] for name in per_token.data_vars], dim=xr.Variable("measure", list(per_token.data_vars))
    )
    counts = counts.assign_attrs(long_name="values in the group", units="1")
    means = {name: found[f"mean {name}"].assign_attrs(v.attrs) for name, v in per_token.data_vars.items()}
    result = xr.Dataset({**means, "num_values": counts}).assign_coords(group=groups)
    return result.isel(group=counts.sum(["measure", "sample"]).values > 0).rename(group=dim)


def summarise(per_token: xr.Dataset, by: str | xr.DataArray) -> xr.Dataset:
    """Return the mean of every variable in every group, with an interval over images.

    The mean is that of `image_means`, so every image that has values in a group counts the same.

    Args:
        per_token, by: as in `image_means`.

    Returns:
        The variables, (group, bound), bounds mean, low, high; the first dimension bears the name of `by`. `low` and
        `high` are NaN where a single image has values. `num_values` and `num_images` (measure, group) count tokens
        and images.

    Raises:
        ValueError: fewer than two images, and as `image_means` does.
    """
    if per_token.sizes.get("sample", 0) < 2:
        raise ValueError(f"summarise: an interval needs at least two samples (images), got {dict(per_token.sizes)}")
    means = image_means(per_token, by)
    counts = means["num_values"]  # (measure, sample, group)
    dim = str(counts.dims[-1])

    def interval(row: NDArray[np.floating]) -> NDArray[np.floating]:
        kept = row[~np.isnan(row)]
        if len(kept) < 2:
            return np.array([kept.mean() if len(kept) else np.nan, np.nan, np.nan])
        return np.array(mean_interval(kept))

    found = xr.apply_ufunc(
        interval,
        means.drop_vars("num_values"),
        input_core_dims=[["sample"]],
        output_core_dims=[["bound"]],
        vectorize=True,
        keep_attrs=True,
    )
    return found.assign(
        num_values=counts.sum("sample").assign_attrs(counts.attrs),
        num_images=(counts > 0).sum("sample").assign_attrs(long_name="images with values in the group", units="1"),
    ).assign_coords(bound=BOUNDS, **{dim: means[dim]})


def _labels(per_token: xr.Dataset, by: str | xr.DataArray) -> xr.DataArray:
    if isinstance(by, str):
        if by not in per_token.coords or by == "sample":
            raise ValueError(f"groups by {by!r} need that coordinate, got {sorted(map(str, per_token.coords))}")
        by = per_token[by]
    return by.astype(object) if by.dtype.kind == "T" else by  # numpy cannot search the new strings yet


def _unique(labels: xr.DataArray) -> NDArray[Any]:
    groups = da.unique(labels.data).compute() if labels.chunks else np.unique(labels.values)
    return groups[groups == groups]  # NaN is no group
