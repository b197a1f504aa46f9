"""What an analysis found, on disk and in short."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import xarray as xr

from tapstudy.analysis.stats import mean_interval


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
