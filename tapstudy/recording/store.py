"""A recording on disk: a Zarr v3 group that any xarray user can open.

Every chunk belongs to one sample and carries a checksum; a sample counts only once its `finished` flag is written,
which happens last. So a killed recording keeps every finished sample, and damage is reported when it is read.
"""

from __future__ import annotations

import fcntl
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from tapstudy.recording.schema import SCHEMA_VERSION, VARIABLES, Layout

# name -> dimension, values, attributes
Coords = Mapping[str, tuple[str, Any, dict[str, str]]]

CHUNK_BYTES = 8 << 20
LOCK = ".lock"


class RecordingError(RuntimeError):
    """A recording that cannot be read, or cannot be gone on with."""


class Store:
    """One recording, open for writing by this process alone."""

    def __init__(self, path: Path, group: zarr.Group, layout: Layout, lock: int) -> None:
        self.path, self.group, self.layout, self._held = path, group, layout, lock

    @staticmethod
    def exists(path: str | Path) -> bool:
        return (Path(path) / "zarr.json").is_file()

    @classmethod
    def create(cls, path: str | Path, layout: Layout, *, coords: Coords, attrs: dict[str, Any]) -> Store:
        """Lay out an empty recording.

        Args:
            coords: name -> (dimension, values, attributes).
            attrs: of the dataset; `configuration` must be there, as one JSON string.

        Raises:
            RecordingError: something is at `path` already, or the folder cannot be written.
        """
        path = Path(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(entry.name != LOCK for entry in path.iterdir()):
                raise RecordingError(f"{path} already holds something else: choose another path")
            lock = _lock(path)
            group = zarr.create_group(path, zarr_format=3, attributes={"schema_version": SCHEMA_VERSION, **attrs})
        except OSError as error:
            raise RecordingError(f"cannot write a recording at {path}: {error}") from error
        store = cls(path, group, layout, lock)
        for name in layout.fields:
            _create_variable(group, name, layout)
        finished = group.create_array(
            "finished", shape=(layout.sizes["sample"],), chunks=(1,), dtype="int8", fill_value=0,
            dimension_names=("sample",), config={"write_empty_chunks": True},
        )  # fmt: skip
        finished.attrs.update(long_name="this sample is complete", units="1")
        for name, (dim, values, attributes) in coords.items():
            array = group.create_array(name, data=_storable(values), dimension_names=(dim,), compressors=_codecs())
            array.attrs.update(attributes)
        group.attrs["coordinates"] = " ".join(coords)
        store._consolidate()
        return store

    @classmethod
    def resume(cls, path: str | Path) -> Store:
        """Open an existing recording to go on with it.

        Raises RecordingError: another process is at it, it is of a newer schema, or it cannot be read.
        """
        path = Path(path)
        lock = _lock(path)
        try:
            group = zarr.open_group(path, mode="r+", use_consolidated=False)
            check_version(path, group.attrs)
            layout = _read_layout(group)
        except (OSError, ValueError, KeyError) as error:
            os.close(lock)
            raise RecordingError(f"{path} cannot be gone on with ({type(error).__name__}: {error})") from error
        except RecordingError:
            os.close(lock)
            raise
        return cls(path, group, layout, lock)

    def names(self, coordinate: str) -> list[str]:
        return [str(name) for name in self._array(coordinate)[:]]

    def add(self, name: str, sizes: Mapping[str, int]) -> None:
        """Lay out one more variable, unless it is there."""
        if name in self.layout.fields:
            return
        self.layout = replace(self.layout, sizes={**self.layout.sizes, **sizes}, fields=(*self.layout.fields, name))
        _create_variable(self.group, name, self.layout)
        self._consolidate()

    def _consolidate(self) -> None:
        with warnings.catch_warnings():
            # Zarr v3 has no consolidated metadata in its specification; xarray reads it, and opens faster with it
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.path)
        self.group = zarr.open_group(self.path, mode="r+", use_consolidated=False)

    def _array(self, name: str) -> Any:
        return self.group[name]

    @property
    def finished(self) -> NDArray[np.bool_]:
        return np.asarray(self._array("finished")[:]).astype(bool)

    def begin(self, sample: int) -> SampleWriter:
        return SampleWriter(self, sample)

    def finish(self, sample: int) -> None:
        self._array("finished")[sample] = 1

    def close(self) -> None:
        os.close(self._held)


class SampleWriter:
    """Collects one sample and writes it chunk by chunk, so that at most one chunk per variable and context waits."""

    def __init__(self, store: Store, sample: int) -> None:
        self.store, self.sample = store, sample
        self._waiting: dict[tuple[str, int, int], NDArray[Any]] = {}

    def put(self, name: str, context: int, step: int, values: NDArray[Any]) -> None:
        """One step of one context. Steps of a context must come in order.

        Raises:
            RecordingError: not finite.
        """
        layout = self.store.layout
        if not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise RecordingError(
                f"sample {self.sample}, step {step}, context {context}: {bad} of {values.size} values of {name} are "
                "not finite; finished samples are kept. Look at the model's dtype and inputs"
            )
        length = step_chunk(name, layout)
        chunk, offset = divmod(step, length)
        key = (name, context, chunk)
        if key not in self._waiting:
            for waiting in [k for k in self._waiting if k[:2] == (name, context)]:
                self._flush(waiting)
            count = min(length, layout.sizes["step"] - chunk * length)
            fill = VARIABLES[name].fill
            self._waiting[key] = np.full((count, *layout.shape(name)[2:]), fill, dtype=layout.dtype(name))
        self._waiting[key][offset] = values

    def put_whole(self, name: str, values: NDArray[Any]) -> None:
        """A variable without steps."""
        if not np.isfinite(values).all():
            raise RecordingError(f"sample {self.sample}: {name} is not finite; finished samples are kept")
        self.store._array(name)[self.sample] = values.astype(self.store.layout.dtype(name))

    def finish(self) -> None:
        for key in list(self._waiting):
            self._flush(key)
        self.store.finish(self.sample)

    def _flush(self, key: tuple[str, int, int]) -> None:
        name, context, chunk = key
        values = self._waiting.pop(key)
        start = chunk * step_chunk(name, self.store.layout)
        self.store._array(name)[self.sample, context, start : start + len(values)] = values


def step_chunk(name: str, layout: Layout) -> int:
    """Steps per chunk: as many as fit `CHUNK_BYTES`."""
    per_step = int(np.prod(layout.shape(name)[2:])) * layout.dtype(name).itemsize
    return max(1, min(layout.sizes["step"], CHUNK_BYTES // per_step))


def open_recording(path: str | Path, *, verify: bool = True) -> xr.Dataset:
    """A recording as a lazy dataset, finished samples only.

    Args:
        verify: also look that every chunk of the finished samples is there (checksums are verified as data is read).

    Raises:
        RecordingError: no recording, of a newer schema, damaged, or without one finished sample.
    """
    path = Path(path)
    try:
        dataset = xr.open_zarr(path)
    except Exception as error:  # zarr and xarray raise many classes for what is not a store
        raise RecordingError(f"no readable recording at {path} ({type(error).__name__}: {error})") from error
    check_version(path, dataset.attrs)
    dataset = dataset.set_coords([name for name in dataset.attrs.get("coordinates", "").split() if name in dataset])
    finished = dataset["finished"].values.astype(bool)
    if not finished.any():
        raise RecordingError(f"{path} has no finished sample yet: resume the recording")
    if verify:
        _check_chunks(path, np.flatnonzero(finished))
    return dataset.isel(sample=np.flatnonzero(finished)).drop_vars("finished")


def check_version(path: Path, attrs: Mapping[str, Any]) -> None:
    version = attrs.get("schema_version")
    if not isinstance(version, int):
        raise RecordingError(f"{path} is not a tapstudy recording: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise RecordingError(
            f"{path} has schema version {version}, this tapstudy reads up to {SCHEMA_VERSION}: update tapstudy"
        )


def _check_chunks(path: Path, samples: Sequence[int] | NDArray[np.intp]) -> None:
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    for name in VARIABLES:
        if name not in group:
            continue
        array: Any = group[name]
        counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
        for sample in samples:
            for rest in np.ndindex(*counts[1:]):
                chunk = path / name / "c" / "/".join(map(str, (int(sample), *rest)))
                if not chunk.is_file():
                    raise RecordingError(
                        f"{path} is damaged: {chunk.relative_to(path)} of finished sample {sample} is missing; record "
                        "it again"
                    )


def _create_variable(group: zarr.Group, name: str, layout: Layout) -> None:
    variable = VARIABLES[name]
    shape = layout.shape(name)
    chunks = (1, 1, step_chunk(name, layout), *shape[2:]) if "step" in variable.dims else (1, *shape)
    array = group.create_array(
        name,
        shape=(layout.sizes["sample"], *shape),
        chunks=chunks,
        dtype=layout.dtype(name),
        compressors=_codecs(),
        fill_value=variable.fill,
        dimension_names=("sample", *variable.dims),
        config={"write_empty_chunks": True},
    )
    array.attrs.update(long_name=variable.long_name, units=variable.units)


def _codecs() -> list[Any]:
    return [ZstdCodec(level=3), Crc32cCodec()]


def _storable(values: Any) -> NDArray[Any]:
    array = np.asarray(values)
    return array.astype(np.dtypes.StringDType()) if array.dtype.kind in "UO" else array


def _lock(path: Path) -> int:
    """Hold the recording for this process; the system lets go when the process ends, however it ends."""
    try:
        handle = os.open(path / LOCK, os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise RecordingError(f"cannot write a recording at {path}: {error}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RecordingError(f"another process is recording into {path}: wait for it, or choose another path") from None
    return handle


def _read_layout(group: zarr.Group) -> Layout:
    sizes: dict[str, int] = {}
    fields = []
    dtype = "float32"
    for name, variable in VARIABLES.items():
        if name in group:
            array: Any = group[name]
            fields.append(name)
            sizes |= dict(zip(("sample", *variable.dims), array.shape, strict=True))
            if variable.dtype == "feature":
                dtype = str(array.dtype)
    return Layout(sizes, tuple(fields), dtype)
