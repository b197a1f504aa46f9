"""Datasets as netCDF files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import xarray as xr


def read_netcdf(path: str | Path) -> xr.Dataset:
    """Return the dataset in a file, in memory; threads may read at once, and while one writes.

    The library under netCDF crashes when two threads are in it. `xarray` holds its lock while it reads and writes
    values, but not while it reads names and attributes: here it is held all along.
    """
    import xarray as xr
    from xarray.backends.netCDF4_ import NETCDF4_PYTHON_LOCK

    with NETCDF4_PYTHON_LOCK, xr.open_dataset(path, engine="netcdf4", lock=False) as file:
        return file.load()


def write_netcdf(dataset: xr.Dataset, out: str | Path, *, packed: bool = False) -> Path:
    """Write netCDF 4, lazy variables chunk by chunk; a file at `out` is replaced once the new one is whole.

    Text becomes netCDF strings, and half precision, which netCDF lacks, single. Nothing is rounded, and nothing
    inherits how it was stored before. On a cluster the workers write: `out` must be where they can reach it.

    Args:
        packed: compress, for files that are kept with the source.
    """
    out = Path(out).expanduser().resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    stored = dataset.copy()
    for name, variable in dataset.variables.items():
        if variable.dtype.kind in "TU":  # netCDF strings are Python objects to xarray
            stored[name] = variable.copy(data=variable.values.astype(object))
        elif variable.dtype == np.float16:
            stored[name] = variable.astype(np.float32)
    for variable in stored.variables.values():
        plain = variable.dtype.kind == "O"  # has no missing values, and cannot be compressed
        variable.encoding = {} if plain else {"_FillValue": None}
        if packed and not plain and variable.ndim:
            variable.encoding |= {"zlib": True, "complevel": 9}
    partial = out.with_name(out.name + ".partial")
    try:
        stored.to_netcdf(partial, engine="netcdf4", format="NETCDF4")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out
