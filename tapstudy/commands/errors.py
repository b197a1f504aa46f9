"""Bad input ends a command with one clear line, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def user_errors() -> Iterator[None]:
    from tapstudy.recording.damage import RecordingError

    try:
        yield
    except (TypeError, ValueError, FileNotFoundError, ConnectionError, ImportError, RecordingError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(2) from error
