"""What has been computed is kept on disk, so that the same call resumes after a kill."""

from __future__ import annotations

import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.netcdf import read_netcdf, write_netcdf

logger = logging.getLogger(__name__)


def short_hash(value: Any) -> str:
    """Return sixteen digits that tell plain values apart, the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def results_in(folder: str | Path | None) -> Iterator[Results]:
    """Keep results in a folder, or, if it is None, for the length of the block."""
    with TemporaryDirectory() if folder is None else nullcontext(str(folder)) as path:
        yield Results(path)


class Results:
    """Hold files in a folder, each made once, whole or not at all.

    A file belongs to a key: whatever its values depend on, as plain values. One that is damaged, or was made for
    another key, is made again.

    Args:
        folder: made when there is something to write. The log tells of files that are made again.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def belongs_to(self, plan: Mapping[str, Any]) -> None:
        """Raises ValueError if the folder holds results of another plan; else it belongs to this one."""
        text, file = json.dumps(plan, sort_keys=True, indent=1), self.folder / "plan.json"
        if file.exists() and file.read_text() != text:
            raise ValueError(
                f"{self.folder} holds results of another plan, or of other weights, see {file}: choose another"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(file.name + ".partial")
        partial.write_text(text)
        partial.replace(file)

    def dataset(self, name: str, key: Any, make: Callable[[], xr.Dataset]) -> xr.Dataset:
        """Return what `make` returns, in memory; made now unless the file holds it."""
        found = self.read(name, key)
        return self.write(name, key, make()) if found is None else found

    def value(self, name: str, key: Any, make: Callable[[], Any]) -> Any:
        """Return a plain value, likewise."""
        path = self.folder / f"{name}.json"
        if path.exists():
            try:
                kept = json.loads(path.read_text())
                if kept["key"] == _plain(key):
                    return kept["value"]
                self._again(path, "was made with other settings or weights")
            except (ValueError, KeyError, TypeError) as error:
                self._again(path, f"cannot be read ({type(error).__name__}: {error})")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps({"key": _plain(key), "value": make()}, indent=1))
        partial.replace(path)
        return json.loads(path.read_text())["value"]

    def read(self, name: str, key: Any) -> xr.Dataset | None:
        """Return the dataset in a file, None if there is none that is whole and belongs to the key."""
        path = self.folder / f"{name}.nc"
        if not path.exists():
            return None
        try:
            found = read_netcdf(path)
            told, checksum = json.loads(found.attrs.pop("key")), found.attrs.pop("checksum")
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            self._again(path, f"cannot be read ({type(error).__name__}: {error})")
            return None
        if checksum == _checksum(found) and told == _plain(key):
            return found
        self._again(path, "is damaged" if told == _plain(key) else "was made with other settings or weights")
        return None

    def write(self, name: str, key: Any, dataset: xr.Dataset) -> xr.Dataset:
        """Keep a dataset, and return it as it is read."""
        attrs = {"key": json.dumps(_plain(key)), "checksum": _checksum(dataset)}
        write_netcdf(dataset.assign_attrs(attrs), self.folder / f"{name}.nc")
        found = self.read(name, key)
        assert found is not None
        return found

    def _again(self, path: Path, reason: str) -> None:
        logger.warning("%s %s: computing it again", path, reason)


def _plain(key: Any) -> Any:
    return json.loads(json.dumps(key))


def _checksum(dataset: xr.Dataset) -> int:
    """Sum up the values of all variables, as they are in a file."""
    found = 0
    for name in sorted(map(str, dataset.data_vars)):
        values = dataset[name].values
        if values.dtype.kind in "OUT":
            content = json.dumps(values.astype(object).tolist()).encode()
        elif values.dtype == np.float16:  # netCDF has none
            content = values.astype(np.float32).tobytes()
        else:
            content = np.ascontiguousarray(values).tobytes()
        found = zlib.crc32(content, found)
    return found
