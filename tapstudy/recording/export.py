"""Write a recording, or a part of one, again: as a recording, or a small one as one netCDF file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.netcdf import write_netcdf
from tapstudy.recording.damage import FINISHED, RecordingError, recording_path
from tapstudy.recording.lock import lock
from tapstudy.recording.schema import chunk_shape
from tapstudy.recording.store import codecs, open_recording


def to_zarr(recording: str | Path | xr.Dataset, out: str | Path) -> Path:
    """Write whatever was selected of a recording as a recording: chunks per sample, with checksums.

    `open_recording` reads it back. It cannot be resumed.

    Args:
        recording: folder of a recording, or a dataset: select what you need first. It is read a chunk at a time.
        out: folder to make.

    Raises:
        RecordingError: not a recording, not readable, empty, or something is at `out` already.
    """
    dataset = recording if isinstance(recording, xr.Dataset) else open_recording(recording)
    out = recording_path(out)
    if "schema_version" not in dataset.attrs:
        raise RecordingError("to_zarr writes recordings, and the dataset has no schema_version")
    if empty := [name for name, size in dataset.sizes.items() if not size]:
        raise RecordingError(
            f"the selection holds nothing along {', '.join(map(str, empty))}: there is nothing to write"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RecordingError(f"there is something at {out} already: choose another path")
    with lock(out):
        _write(dataset.drop_encoding(), out)
    return out


def _write(dataset: xr.Dataset, out: Path) -> None:
    flags = np.ones(dataset.sizes["sample"] if "sample" in dataset.dims else (), dtype="int8")
    attrs = {"long_name": "this sample is complete", "units": "1", "excerpt": 1}
    stored = dataset.assign({FINISHED: (("sample",) if flags.ndim else (), flags, attrs)})
    encoding: dict[Any, dict[str, Any]] = {}
    for name, variable in stored.variables.items():
        chunks = variable.shape
        if name in stored.data_vars:
            chunks = chunk_shape({str(dim): size for dim, size in variable.sizes.items()}, variable.dtype)
            stored[name] = variable.chunk(dict(zip(variable.dims, chunks, strict=True)))
        encoding[name] = {"chunks": chunks, "compressors": codecs()}
    with warnings.catch_warnings():
        # Zarr v3 has no consolidated metadata in its specification
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        stored.to_zarr(out, zarr_format=3, consolidated=True, encoding=encoding, write_empty_chunks=True)


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
