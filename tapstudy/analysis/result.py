"""What an analysis found, on disk and in short.

Beside every analysis stands a function that says which of its variables are summarised and how: it makes of the result
a dataset with one value per image, (sample,), or one per image and label. `means` and `shares` do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.analysis.stats import mean_interval
from tapstudy.netcdf import ENGINE
from tapstudy.tables import interval_text

Described = tuple[xr.DataArray, str, str]  # an array, its long name and its units


def lazily(
    function: Callable[..., Any],
    *arrays: xr.DataArray,
    core: Sequence[str],
    out: Sequence[str] = ("",),
    dtypes: Sequence[Any] = (np.float64,),
    sizes: Mapping[str, int] | None = None,
    **options: Any,
) -> Any:
    """Apply a function of numpy arrays, chunk by chunk where the arrays are lazy.

    Args:
        core: dimensions of each array, between spaces, that the function sees whole, last.
        out: those of each result.
        sizes: of dimensions that only results have.
        options: of `xarray.apply_ufunc`.
    """
    return xr.apply_ufunc(
        function,
        *arrays,
        input_core_dims=[dims.split() for dims in core],
        output_core_dims=[dims.split() for dims in out],
        dask="parallelized",
        output_dtypes=list(dtypes),
        dask_gufunc_kwargs={"allow_rechunk": True, "output_sizes": dict(sizes or {})},
        **options,
    )


def described(found: Mapping[str, Described]) -> xr.Dataset:
    """Make a dataset of arrays with their long names and units."""
    return xr.Dataset({
        name: values.assign_attrs(long_name=text, units=units) for name, (values, text, units) in found.items()
    })  # fmt: skip


def open_result(path: str | Path) -> xr.Dataset:
    """Return a written result, lazily, an image at a time."""
    found = xr.open_dataset(path, engine=ENGINE, chunks={})
    return found.chunk(sample=1) if "sample" in found.dims else found


def means(result: xr.Dataset, *names: str, along: str | None = None) -> xr.Dataset:
    """Average each variable for every image (sample,), and every label of `along`; leave out missing values."""
    kept = ("sample", along)
    return xr.Dataset({
        name: result[name].mean([dim for dim in result[name].dims if dim not in kept]).assign_attrs(result[name].attrs)
        for name in names
    })  # fmt: skip


def shares(codes: xr.DataArray, labels: Mapping[Any, Any], *, dim: str, long_name: str) -> xr.DataArray:
    """Return the share of each code among those of an image that are any of them, (sample, dim), labelled.

    Args:
        codes: (sample, ...); others, such as the -1 of full steps, count for nothing.
        labels: code -> what it means.
    """
    others = [name for name in codes.dims if name != "sample"]
    counts = xr.concat([(codes == code).sum(others) for code in labels], dim=dim).assign_coords(
        {dim: [*labels.values()]}
    )
    total = counts.sum(dim)
    attrs = {"long_name": long_name, "units": "1"}
    return (counts / total.where(total > 0)).assign_attrs(attrs).transpose(..., dim)


def summary_rows(summary: xr.Dataset) -> list[tuple[str, str, str, str]]:
    """Name, meaning, mean and units of every variable, and label, of a summary.

    Images count alike, and the mean comes with its 95 % interval over them when there are at least two. Images without
    a value (NaN) are left out.
    """
    rows = []
    for name, variable in summary.data_vars.items():
        about, units = (str(variable.attrs.get(key, "")) for key in ("long_name", "units"))
        labelled = [dim for dim in variable.dims if dim != "sample"]
        for dim in labelled:
            for i, label in enumerate(variable[dim].values):
                rows.append((f"{name}, {label}", about, _mean_text(variable.isel({dim: i})), units))
        if not labelled:
            rows.append((str(name), about, _mean_text(variable), units))
    return rows


def contents(result: xr.Dataset) -> str:
    """Return variables and their dimensions, in words."""
    return "; ".join(
        f"{name} ({', '.join(f'{dim} {size}' for dim, size in variable.sizes.items())})"
        for name, variable in result.data_vars.items()
    )


def _mean_text(values: xr.DataArray) -> str:
    finite = np.atleast_1d(values.values)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return "no value"
    if "sample" in values.dims and len(finite) > 1:
        return interval_text(mean_interval(finite), ".4g")
    return f"{finite.mean():.4g}"
