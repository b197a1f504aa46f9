"""Bad input ends a command with one clear line, not a traceback."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def user_errors() -> Iterator[None]:
    """End the command with one line on stderr and exit code 2 for what the user can mend, inside the block.

    What a file system, torch or a package says over several lines becomes one; a damaged recording is told of in full.
    """
    try:
        yield
    except (typer.Exit, typer.Abort):  # RuntimeErrors, to Python
        raise
    except (TypeError, ValueError, OSError, OverflowError, RuntimeError, ImportError) as error:
        typer.secho(f"Error: {_message(error)}", fg="red", err=True)
        raise typer.Exit(2) from error


def _message(error: Exception) -> str:
    damage = sys.modules.get("tapstudy.recording.damage")  # else it is none of its errors
    if damage is not None and isinstance(error, damage.RecordingError):
        return str(error)
    return " ".join(str(error).split()) or type(error).__name__
