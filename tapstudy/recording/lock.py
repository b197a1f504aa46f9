"""Lock a folder: one writer per recording."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tapstudy.recording.damage import ROOT, RecordingError


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Make the folder of a recording and lock it for this process; a new folder that stays empty is removed again.

    The system releases the lock when the process ends, however it ends.

    Raises:
        RecordingError: the folder cannot be written, holds something else, or another process records into it.
    """
    made = not path.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        # a writer killed in its first moments leaves files that were never put in place
        names = [entry.name for entry in path.iterdir() if entry.suffix != ".partial"]
        if names and ROOT not in names:
            raise RecordingError(f"{path} already holds something else ({sorted(names)[0]}): choose another path")
        handle = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise RecordingError(f"cannot write a recording at {path}: {error}") from error
    try:
        _lock(handle, path)
        yield
    finally:
        os.close(handle)
        if made:
            with suppress(OSError):  # not empty
                path.rmdir()


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RecordingError(f"another process is recording into {path}: wait for it, or choose another path") from None
    except OSError as error:
        raise RecordingError(f"cannot lock {path}: {error}") from error
