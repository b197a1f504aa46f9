"""One recorder per folder."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

from tapstudy.recording.damage import ROOT, RecordingError


def claim(path: Path) -> int:
    """Make the folder of a recording, and hold it for this process until the returned descriptor is closed.

    The system lets go when the process ends, however it ends.

    Raises:
        RecordingError: the folder cannot be written, holds something else, or another process records into it.
    """
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
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if not isinstance(error, BlockingIOError):
            raise RecordingError(f"cannot lock {path}: {error}") from error
        raise RecordingError(f"another process is recording into {path}: wait for it, or choose another path") from None
    return handle


def clear(path: Path) -> None:
    """Empty a claimed folder."""
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
