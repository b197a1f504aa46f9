"""Find damage: every chunk ends with the CRC-32C of what comes before, and the root lists every array."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from tapstudy.recording.schema import COORDINATES

ROOT = "zarr.json"
FINISHED = "finished"
INPUTS = "inputs"  # a group: what the calls were given, by hash
CHECKSUM_BYTES = 4


class RecordingError(RuntimeError):
    """Tell that a recording cannot be made, read, or resumed."""


@dataclass(frozen=True)
class Damage:
    """Name a file that is missing or changed; `sample` is None for what belongs to no sample."""

    variable: str
    sample: int | None
    file: str
    reason: str

    def __str__(self) -> str:
        whose = "" if self.sample is None else f" of sample {self.sample}"
        return f"{self.variable}{whose} ({self.file}) {self.reason}"

    @property
    def mendable(self) -> bool:
        """Whether making samples again makes the file again."""
        return (
            self.variable not in COORDINATES
            and not self.variable.startswith(f"{INPUTS}/")
            and not self.file.endswith(ROOT)
        )

    @property
    def remedy(self) -> str:
        """What to do about it."""
        again = "record again with the same arguments to mend it, or restore the file"
        return again if self.mendable else "restore the file, or record at another path"


class CheckedStore(LocalStore):
    """Name the chunk that is damaged or missing when one is read; zarr's own message names none, or there is none."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        return self._checked(key, await super().get(key, *args, **kwargs))

    def get_sync(self, key: str, **kwargs: Any) -> Buffer | None:
        return self._checked(key, super().get_sync(key, **kwargs))

    def _checked(self, key: str, found: Buffer | None) -> Buffer | None:
        chunk = re.fullmatch(r"(.+?)/c(/\d+)*", key)
        if chunk is None:
            return found
        name = chunk[1]
        if found is None and not self.root.is_dir():
            raise RecordingError(f"{self.root} is no longer there: {name} ({key}) cannot be read; open it anew")
        if found is None or not is_whole(found.to_bytes()):
            damage = Damage(name, None, key, "is missing" if found is None else "does not match its checksum")
            raise RecordingError(f"{self.root} is damaged: {damage}; {damage.remedy}")
        return found


def is_whole(chunk: bytes) -> bool:
    """Tell whether a chunk matches the checksum at its end."""
    content, checksum = chunk[:-CHECKSUM_BYTES], chunk[-CHECKSUM_BYTES:]
    return len(checksum) == CHECKSUM_BYTES and google_crc32c.value(content) == int.from_bytes(checksum, "little")


def recording_path(path: str | Path) -> Path:
    """Make a path absolute, so that it means the same after a change of folder, with `~` as the home folder.

    Raises RecordingError where there is no such home.
    """
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:
        raise RecordingError(f"{path}: {error}") from error


def read_root(path: Path) -> dict[str, Any]:
    """Read the metadata of a Zarr group, from its own file.

    Raises RecordingError, naming the file that is missing or not whole.
    """
    file = path / ROOT
    try:
        metadata = json.loads(file.read_bytes())
    except FileNotFoundError:
        lacking = f"it holds no {ROOT}" if path.is_dir() else "there is no such folder"
        raise RecordingError(f"no readable recording at {path}: {lacking}") from None
    except (OSError, ValueError) as error:
        raise RecordingError(f"no readable recording at {path}: {file} cannot be read ({error})") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("attributes", {}), dict):
        raise RecordingError(f"no readable recording at {path}: {file} holds no metadata of a group")
    return metadata


def listed_arrays(root: dict[str, Any]) -> dict[str, Any] | None:
    """Take the metadata of every array by name from that of the group; None before the recording was laid out."""
    listed = root.get("consolidated_metadata")
    return None if listed is None else {name: one for name, one in listed["metadata"].items() if "shape" in one}


def find_damage(path: Path, samples: Sequence[int] | NDArray[np.intp], *, checksums: bool) -> list[Damage]:
    """Find missing files, of arrays, coordinates, flags and the given samples; with `checksums`, also changed ones.

    Raises RecordingError if the root itself cannot be read.
    """
    arrays = listed_arrays(read_root(path)) or {}
    found, wanted = [], set(map(int, samples))
    for name, listed in arrays.items():
        reason = _metadata_damage(path / name / ROOT, listed)
        if reason is not None:
            found.append(Damage(name, None, f"{name}/{ROOT}", reason))
        per_sample = name not in COORDINATES and (listed.get("dimension_names") or [])[:1] == ["sample"]
        chunks = listed["chunk_grid"]["configuration"]["chunk_shape"]
        counts = (-(-size // chunk) for size, chunk in zip(listed["shape"], chunks, strict=True))
        for index in np.ndindex(*counts):
            sample = index[0] if per_sample else None
            if sample is not None and sample not in wanted and name != FINISHED:
                continue
            chunk = "/".join((name, "c", *map(str, index)))
            if not (path / chunk).is_file():
                found.append(Damage(name, sample, chunk, "is missing"))
            elif checksums and not is_whole((path / chunk).read_bytes()):
                found.append(Damage(name, sample, chunk, "does not match its checksum"))
    return found


def _metadata_damage(file: Path, listed: dict[str, Any]) -> str | None:
    """Tell what is wrong with the metadata file of an array, beside what the root lists."""
    try:
        held = json.loads(file.read_bytes())
    except FileNotFoundError:
        return "is missing"
    except (OSError, ValueError):
        return "cannot be read"
    return None if held == listed else "differs from what the root lists"
