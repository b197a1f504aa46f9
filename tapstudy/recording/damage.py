"""Is a recording whole? Every chunk ends with the CRC-32C of what comes before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from tapstudy.recording.schema import VARIABLES

CHECKSUM_BYTES = 4


class RecordingError(RuntimeError):
    """A recording that cannot be made, read, or gone on with."""


@dataclass(frozen=True)
class Damage:
    """A chunk that cannot be read; `sample` is None for coordinates."""

    variable: str
    sample: int | None
    chunk: str
    reason: str

    def __str__(self) -> str:
        whose = "" if self.sample is None else f" of sample {self.sample}"
        return f"{self.variable}{whose} ({self.chunk}) {self.reason}"


class CheckedStore(LocalStore):
    """Says which chunk is damaged when one is read; zarr's own message names none."""

    async def get(self, key: str, *args: Any, **kwargs: Any) -> Buffer | None:
        return self._checked(key, await super().get(key, *args, **kwargs))

    def get_sync(self, key: str, **kwargs: Any) -> Buffer | None:
        return self._checked(key, super().get_sync(key, **kwargs))

    def _checked(self, key: str, found: Buffer | None) -> Buffer | None:
        name, *rest = key.split("/")
        if found is not None and rest[:1] == ["c"] and not is_whole(found.to_bytes()):
            raise RecordingError(
                f"{self.root} is damaged: {name} ({key}) does not match its checksum; record again with the same "
                "arguments to mend it"
            )
        return found


def is_whole(chunk: bytes) -> bool:
    """Whether a chunk matches the checksum at its end."""
    content, checksum = chunk[:-CHECKSUM_BYTES], chunk[-CHECKSUM_BYTES:]
    return len(checksum) == CHECKSUM_BYTES and google_crc32c.value(content) == int.from_bytes(checksum, "little")


def find_damage(path: Path, samples: Sequence[int] | NDArray[np.intp], *, checksums: bool) -> list[Damage]:
    """Chunks that are missing, among coordinates and the given samples; with `checksums`, also those that changed."""
    found = []
    group = zarr.open_group(path, mode="r", use_consolidated=False)
    for name in (*str(group.attrs.get("coordinates", "")).split(), *VARIABLES, "finished"):
        if name not in group:
            continue
        array: Any = group[name]
        counts = [-(-size // chunk) for size, chunk in zip(array.shape, array.chunks, strict=True)]
        per_sample = name in (*VARIABLES, "finished")
        for index in np.ndindex(*counts):
            sample = index[0] if per_sample else None
            if sample is not None and sample not in samples:
                continue
            chunk = "/".join((name, "c", *map(str, index)))
            if not (path / chunk).is_file():
                found.append(Damage(name, sample, chunk, "is missing"))
            elif checksums and not is_whole((path / chunk).read_bytes()):
                found.append(Damage(name, sample, chunk, "does not match its checksum"))
    return found
