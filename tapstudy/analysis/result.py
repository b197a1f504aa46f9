"""What an analysis found, on disk and in short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from tapstudy.analysis.stats import mean_interval


def write_result(result: xr.Dataset, out: str | Path) -> Path:
    """Write a lazy dataset as one netCDF 4 file, chunk by chunk; a file at `out` is replaced once the new one is whole.

    On a cluster the workers write: `out` must be where they can reach it.
    """
    out = Path(out).resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = result.copy()
    for name, variable in result.variables.items():
        if variable.dtype.kind in "TU":  # netCDF strings are Python objects to xarray
            stored[name] = variable.copy(data=variable.values.astype(object))
        elif variable.dtype == np.float16:  # netCDF has no half precision
            stored[name] = variable.astype(np.float32)
    for variable in stored.variables.values():
        variable.encoding = {}
    replace_netcdf(stored, out)
    return out


def replace_netcdf(stored: xr.Dataset, out: Path) -> None:
    """Write netCDF 4 beside `out`, and put it in its place once it is whole."""
    partial = out.with_name(out.name + ".partial")
    try:
        stored.to_netcdf(partial, engine="netcdf4", format="NETCDF4")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


def open_result(path: str | Path) -> xr.Dataset:
    """A written result, lazily."""
    return xr.open_dataset(path, engine="netcdf4", chunks={})


def summary_rows(result: xr.Dataset) -> list[tuple[str, str, str, str]]:
    """Name, dimensions, mean and units of every numeric variable.

    Images count alike: the mean is over the means of the images, and comes with its 95 % interval over them when there
    are at least two. Values that are missing (NaN) are left out.
    """
    rows = []
    for name, variable in result.data_vars.items():
        if variable.dtype.kind not in "fiub":
            continue
        others = [dim for dim in variable.dims if dim != "sample"]
        means = np.atleast_1d(variable.mean(others).values)
        finite = means[np.isfinite(means)]
        if not finite.size:
            text = "no value"
        elif "sample" in variable.dims and len(finite) > 1:
            text = "{:.4g} [{:.4g}, {:.4g}]".format(*mean_interval(finite))
        else:
            text = f"{finite.mean():.4g}"
        dims = ", ".join(f"{dim} {size}" for dim, size in variable.sizes.items())
        rows.append((str(name), dims, text, str(variable.attrs.get("units", ""))))
    return rows
