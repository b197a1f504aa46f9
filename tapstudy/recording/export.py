"""Small recordings as one netCDF file."""

from __future__ import annotations

from pathlib import Path

import xarray as xr

from tapstudy.netcdf import write_netcdf
from tapstudy.recording.damage import RecordingError
from tapstudy.recording.store import open_recording


def to_netcdf(recording: str | Path | xr.Dataset, out: str | Path, *, max_bytes: int = 1 << 30) -> Path:
    """Write a recording, or a part of one, as one netCDF 4 file. It passes through memory, so it must be small.

    Args:
        recording: folder of a recording, or a dataset: select what you need first.
        out: file to write; replaced once the new one is whole.
        max_bytes: refuse anything larger, before compression.

    Raises:
        RecordingError: too large, or not readable.
    """
    dataset = recording if isinstance(recording, xr.Dataset) else open_recording(recording)
    if dataset.nbytes > max_bytes:
        largest = sorted(dataset.data_vars, key=lambda name: -dataset[name].nbytes)[:3]
        raise RecordingError(
            f"the recording has {dataset.nbytes / 1e6:.1f} MB, to_netcdf writes up to {max_bytes / 1e6:.1f} MB: select "
            f"variables or samples (the largest are {', '.join(map(str, largest))}), or raise max_bytes; the Zarr "
            "folder itself has no limit"
        )
    return write_netcdf(dataset.load(), out)
