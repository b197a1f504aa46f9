"""Datasets as netCDF files, by way of h5netcdf: threads may read and write at once, which netCDF4 does not survive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

ENGINE: Final = "h5netcdf"  # as xarray calls it


def read_netcdf(path: str | Path) -> xr.Dataset:
    """Return the dataset in a file, in memory."""
    import xarray as xr

    with xr.open_dataset(path, engine=ENGINE) as file:
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
    described: list[xr.Dataset | xr.Variable] = [stored, *stored.variables.values()]
    for one in described:  # texts of numpy are no texts to h5py
        one.attrs = {name: str(value) if isinstance(value, str) else value for name, value in one.attrs.items()}
    for variable in stored.variables.values():
        plain = variable.dtype.kind == "O"  # has no missing values, and cannot be compressed
        variable.encoding = {} if plain else {"_FillValue": None}
        if packed and not plain and variable.ndim:
            variable.encoding |= {"zlib": True, "complevel": 9}
    partial = out.with_name(out.name + ".partial")
    try:
        stored.to_netcdf(partial, engine=ENGINE)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out
