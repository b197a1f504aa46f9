"""Store recordings on disk: each is a Zarr v3 group that any xarray user can open.

Every chunk belongs to one sample and carries a checksum; a sample counts only once its `finished` flag is written,
which happens last. So a killed recording keeps every finished sample, and damage is reported when it is read.
"""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from tapstudy.recording.damage import (
    FINISHED,
    INPUTS,
    ROOT,
    CheckedStore,
    RecordingError,
    find_damage,
    listed_arrays,
    read_root,
    recording_path,
)
from tapstudy.recording.schema import COORDINATES, SCHEMA_VERSION, VARIABLES, Layout, Variable


class Store:
    """Write one recording. The folder must be locked."""

    def __init__(self, path: Path, group: zarr.Group, layout: Layout) -> None:
        self.path, self.group, self.layout = path, group, layout

    @classmethod
    def create(cls, path: Path, layout: Layout, *, coords: Mapping[str, Any], attrs: dict[str, Any]) -> Store:
        """Lay out an empty recording in an empty folder.

        Args:
            coords: values by name, of `schema.COORDINATES`.
            attrs: of the dataset; `configuration` must be there, as one JSON string.
        """
        group = zarr.create_group(path, zarr_format=3, attributes={"schema_version": SCHEMA_VERSION, **attrs})
        store = cls(path, group, layout)
        for name in layout.variables:
            _create_variable(group, name, layout)
        flags = np.zeros(layout.sizes["sample"], dtype="int8")
        _create_array(group, FINISHED, ("sample",), "this sample is complete", data=flags, chunks=(1,))
        for name, values in coords.items():
            dim, long_name = COORDINATES[name]
            array = np.asarray(values)
            array = array.astype(np.dtypes.StringDType()) if array.dtype.kind in "UO" else array
            _create_array(group, name, (dim,), long_name, data=array)
        group.attrs["coordinates"] = " ".join(coords)
        store._consolidate()  # comes last: without it the store counts as not laid out
        return store

    @classmethod
    def resume(cls, path: Path) -> Store | None:
        """Open a recording to write the rest of it; None if it was cut short before it was laid out.

        Raises RecordingError if it cannot be read, or is not one that `record` wrote.
        """
        arrays = _recorded_arrays(path)
        if arrays is None:
            return None
        if "excerpt" in arrays[FINISHED]["attributes"]:
            raise RecordingError(f"{path} is a part of a recording, which cannot be resumed: choose another path")
        shared = [found for found in find_damage(path, [], checksums=True) if not found.mendable]
        if shared:
            raise RecordingError(f"{path} is damaged beyond mending: {shared[0]}; {shared[0].remedy}")
        try:
            group = zarr.open_group(path, mode="r+", use_consolidated=False)
            return cls(path, group, _read_layout(group))
        except (OSError, ValueError, KeyError) as error:
            raise RecordingError(f"{path} cannot be resumed ({type(error).__name__}: {error})") from error

    def tell_versions(self, versions: Mapping[str, str]) -> str | None:
        """Note that the recording is resumed under these package versions, and return those that are new, as a text."""
        root = read_root(self.path)
        held: dict[str, str] = json.loads(root["attributes"]["versions"])
        new = {name: one for name, one in versions.items() if held.get(name, one).split(", then ")[-1] != one}
        if not new:
            return None
        both = held | {name: f"{held[name]}, then {one}" for name, one in new.items()}
        root["attributes"]["versions"] = json.dumps(both, sort_keys=True)
        partial = self.path / f"{ROOT}.partial"
        partial.write_text(json.dumps(root, indent=2))
        partial.replace(self.path / ROOT)
        self.group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
        return ", ".join(f"{name} {both[name]}" for name in new)

    def values(self, coordinate: str) -> NDArray[Any] | None:
        """Read a coordinate; None if there is none of the name."""
        return np.asarray(self._array(coordinate)[:]) if coordinate in self.group else None

    def add(self, name: str, sizes: Mapping[str, int]) -> None:
        """Lay out one more variable of the table, unless it is there.

        Raises RecordingError if it has another size than those that are there.
        """
        if name in self.layout.variables:
            return
        for dim in sizes.keys() & self.layout.sizes.keys():
            if sizes[dim] != self.layout.sizes[dim]:
                raise RecordingError(f"{name} has {sizes[dim]} along {dim}, what is stored {self.layout.sizes[dim]}")
        variables = {**self.layout.variables, name: VARIABLES[name]}
        self.layout = replace(self.layout, sizes={**self.layout.sizes, **sizes}, variables=variables)
        _create_variable(self.group, name, self.layout)
        self._consolidate()

    def keep(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Keep what the calls are given, by hash, unless it is there."""
        listed = listed_arrays(read_root(self.path)) or {}
        missing = {key: array for key, array in inputs.items() if f"{INPUTS}/{key}" not in listed}
        if not missing:
            return
        group = self.group.require_group(INPUTS)
        with zarr.config.set({"array.write_empty_chunks": True}):
            for key, array in missing.items():
                chunks = tuple(max(1, size) for size in array.shape)
                group.create_array(key, data=array, chunks=chunks, compressors=codecs(), overwrite=True)
        self._consolidate()

    def _consolidate(self) -> None:
        with warnings.catch_warnings():
            # Zarr v3 has no consolidated metadata in its specification; xarray reads it, and opens faster with it
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(self.path)
        self.group = zarr.open_group(self.path, mode="r+", use_consolidated=False)

    def _array(self, name: str) -> Any:
        # zarr would leave out chunks that hold the fill value only, and they would count as missing
        with zarr.config.set({"array.write_empty_chunks": True}):
            return self.group[name]

    @property
    def finished(self) -> NDArray[np.bool_]:
        """Which samples are finished, (sample,); raises RecordingError naming a flag that is missing or damaged."""
        return np.asarray(self._flags[:]).astype(bool)

    @cached_property
    def _flags(self) -> Any:
        return zarr.open_array(CheckedStore(self.path, read_only=True), path=FINISHED, mode="r")

    def steps_told(self) -> set[int] | None:
        """Find the steps of the first finished sample that hold something; None if there is no finished sample."""
        finished = np.flatnonzero(self.finished)
        if not len(finished):
            return None
        is_full = self._array("is_full")[finished[0]]  # (context, step), -1 where nothing was told
        return set(np.flatnonzero((is_full >= 0).any(axis=0)).tolist())

    def finish(self, sample: int, *, finished: bool = True) -> None:
        """Set the flag of a sample."""
        self._array(FINISHED)[sample] = int(finished)


class SampleWriter:
    """Write one sample chunk by chunk, so that at most one chunk per variable and context is in memory."""

    def __init__(self, store: Store, sample: int) -> None:
        self.store, self.sample = store, sample
        self.steps: dict[int, set[int]] = defaultdict(set)  # context -> those that were told
        self._waiting: dict[tuple[str, int, int], NDArray[Any]] = {}
        self._written: set[tuple[str, int, int]] = set()

    def put(self, name: str, context: int, step: int, values: NDArray[Any]) -> None:
        """Take one step of one context. Steps of a context must come in order.

        Raises:
            RecordingError: not finite, or not of the size that was laid out.
        """
        layout = self.store.layout
        if step >= layout.sizes["step"]:
            raise RecordingError(
                f"sample {self.sample} goes on after {layout.sizes['step']} steps, the number that the scheduler told"
            )
        self.steps[context].add(step)
        stored = self._checked(name, values, layout.shape(name)[2:], f"step {step}, context {context}")
        chunk, offset = divmod(step, layout.chunks(name)[2])
        self._chunk((name, context, chunk))[offset] = stored

    def put_preview(self, name: str, index: int, picture: NDArray[Any]) -> None:
        """Write one picture at once."""
        stored = self._checked(name, picture, self.store.layout.shape(name)[1:], f"preview {index}")
        self.store._array(name)[self.sample, index] = stored

    def put_whole(self, name: str, values: NDArray[Any]) -> None:
        """Write a variable without steps."""
        stored = self._checked(name, values, self.store.layout.shape(name), "the end")
        self.store._array(name)[self.sample] = stored

    def finish(self) -> None:
        """Write what is left, and the flag of the sample last."""
        layout = self.store.layout
        for name, variable in layout.variables.items():
            if "step" in variable.dims:
                count = -(-layout.sizes["step"] // layout.chunks(name)[2])
                # what no step told (no skip step, a context that ends early) is missing values: every chunk is there
                for context, chunk in np.ndindex(layout.sizes["context"], count):
                    if (name, context, chunk) not in self._written:
                        self._chunk((name, context, chunk))
        for key in list(self._waiting):
            self._flush(key)
        self.store.finish(self.sample)

    def _checked(self, name: str, values: NDArray[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
        """Convert values to what goes to disk."""
        where = f"sample {self.sample}, {where}"
        if values.shape != shape:
            raise RecordingError(
                f"{where}: {name} has shape {values.shape}, but the recording was laid out for {shape}; all samples of "
                "a recording must have one size"
            )
        dtype = self.store.layout.dtype(name)
        with np.errstate(over="ignore"):
            stored = values.astype(dtype)
        if not np.isfinite(stored).all():
            bad = int((~np.isfinite(stored)).sum())
            hint = (
                f"too large for {dtype}: record with dtype='float32'"
                if np.isfinite(values).all()
                else "look at the model's dtype and inputs"
            )
            raise RecordingError(
                f"{where}: {bad} of {values.size} values of {name} are not finite ({hint}); finished samples are kept"
            )
        return stored

    def _chunk(self, key: tuple[str, int, int]) -> NDArray[Any]:
        """Get a chunk to fill; the one before it of the same variable and context goes to disk."""
        if key not in self._waiting:
            for before in [waiting for waiting in self._waiting if waiting[:2] == key[:2]]:
                self._flush(before)
            (name, _, chunk), layout = key, self.store.layout
            length = layout.chunks(name)[2]
            count = min(length, layout.sizes["step"] - chunk * length)
            fill = layout.variables[name].fill
            self._waiting[key] = np.full((count, *layout.shape(name)[2:]), fill, layout.dtype(name))
        return self._waiting[key]

    def _flush(self, key: tuple[str, int, int]) -> None:
        name, context, chunk = key
        values = self._waiting.pop(key)
        start = chunk * self.store.layout.chunks(name)[2]
        self.store._array(name)[self.sample, context, start : start + len(values)] = values
        self._written.add(key)


def open_recording(path: str | Path, *, verify: bool = True) -> xr.Dataset:
    """Open a recording as a lazy dataset, finished samples only. Checksums are verified as the data is read.

    Coordinates are in memory. Nothing of how it is stored sticks to the dataset, so that whatever is selected of it
    can be written again.

    Args:
        path: `~` is the home folder; what was opened stays the same after a change of folder.
        verify: also look that every file of the finished samples is there.

    Raises:
        RecordingError: no recording, of a newer schema, damaged, or without one finished sample. Later, when damaged
            or missing data is read, it names the file.
    """
    path = recording_path(path)
    read_attributes(path)
    if _recorded_arrays(path) is None:
        raise RecordingError(f"{path} was cut short before its first sample: record again")
    try:
        dataset = xr.open_zarr(CheckedStore(path, read_only=True), consolidated=True)
        dataset = dataset.assign_coords({name: _native(values) for name, values in dataset.coords.items()})
        finished = np.flatnonzero(dataset[FINISHED].values)
    except RecordingError:
        raise
    except Exception as error:  # zarr and xarray raise many classes for what is not a store
        raise RecordingError(f"no readable recording at {path} ({type(error).__name__}: {error})") from error
    if not len(finished):
        raise RecordingError(f"{path} has no finished sample yet: resume the recording")
    found = find_damage(path, finished, checksums=False) if verify else []
    if found:
        raise RecordingError(f"{path} is damaged: {found[0]}; {found[0].remedy}")
    whole = dataset.drop_vars(FINISHED).drop_encoding()
    return whole.isel(sample=finished) if "sample" in whole.dims else whole


def read_attributes(path: str | Path) -> dict[str, Any]:
    """Read the attributes of a recording; raises RecordingError for anything else, or one of a newer schema."""
    path = recording_path(path)
    attrs: dict[str, Any] = read_root(path).get("attributes", {})
    version = attrs.get("schema_version")
    if not isinstance(version, int):
        raise RecordingError(f"{path} is not a tapstudy recording: it has no schema_version")
    if version > SCHEMA_VERSION:
        raise RecordingError(
            f"{path} has schema version {version}, this tapstudy reads up to {SCHEMA_VERSION}: update tapstudy"
        )
    return attrs


def read_inputs(path: str | Path) -> dict[str, NDArray[Any]]:
    """Read what `record(keep_inputs=True)` has kept of the calls, by hash; raises RecordingError as it is damaged."""
    path = recording_path(path)
    names = [name for name in _recorded_arrays(path) or {} if name.startswith(f"{INPUTS}/")]
    store = CheckedStore(path, read_only=True)
    return {
        name.removeprefix(f"{INPUTS}/"): np.asarray(zarr.open_array(store, path=name, mode="r")[...]) for name in names
    }


def _native(values: xr.DataArray) -> xr.DataArray:
    """Load, with numbers in the byte order that numpy calls native: netCDF stumbles over the same one by name."""
    loaded = values.load()
    if loaded.dtype.kind not in "iuf":
        return loaded
    return loaded.copy(data=loaded.values.astype(loaded.dtype.newbyteorder("=")))


def _recorded_arrays(path: Path) -> dict[str, Any] | None:
    """Read the metadata of every array by name; None before the recording was laid out.

    Raises RecordingError if there is data that the root does not list, or nothing tells which samples are finished.
    """
    arrays = listed_arrays(read_root(path))
    if arrays is None and any((path / name / "c").exists() for name in VARIABLES):
        raise RecordingError(
            f"{path} holds data, but {path / ROOT} lists no arrays (it has lost its consolidated metadata): "
            "zarr.consolidate_metadata makes it anew"
        )
    if arrays is not None and FINISHED not in arrays:
        raise RecordingError(
            f"{path} does not tell which of its samples are finished, as a copy written by xarray itself: open it with "
            "xarray.open_zarr, or copy with tapstudy.recording.export.to_zarr"
        )
    return arrays


def codecs() -> list[Any]:
    """Compress, and end every chunk with its checksum."""
    return [ZstdCodec(level=3), Crc32cCodec()]


def _create_array(
    group: zarr.Group, name: str, dims: tuple[str, ...], long_name: str, *, units: str = "1", **settings: Any
) -> None:
    array = group.create_array(
        name, dimension_names=dims, compressors=codecs(), config={"write_empty_chunks": True}, **settings
    )
    array.attrs.update(long_name=long_name, units=units)


def _create_variable(group: zarr.Group, name: str, layout: Layout) -> None:
    variable, shape = layout.variables[name], (layout.sizes["sample"], *layout.shape(name))
    settings = {"shape": shape, "chunks": layout.chunks(name), "dtype": layout.dtype(name), "fill_value": variable.fill}
    _create_array(group, name, ("sample", *variable.dims), variable.long_name, units=variable.units, **settings)
    if variable.module is not None:
        group[name].attrs["module"] = variable.module


def _read_layout(group: zarr.Group) -> Layout:
    sizes: dict[str, int] = {}
    arrays: dict[str, Any] = {name: array for name, array in group.arrays() if "module" in array.attrs}
    modules = {
        name: Variable(
            array.metadata.dimension_names[1:], "feature", array.attrs["long_name"], module=array.attrs["module"]
        )
        for name, array in arrays.items()
    }
    table = {name: one for name, one in VARIABLES.items() if name in group} | modules
    dtype = "float32"
    for name, variable in table.items():
        array: Any = group[name]
        sizes |= dict(zip(("sample", *variable.dims), array.shape, strict=True))
        if variable.dtype == "feature":
            dtype = str(array.dtype)
    return Layout(sizes, table, dtype)
