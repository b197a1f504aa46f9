"""Bad input ends a command with one clear line, not a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def user_errors() -> Iterator[None]:
    """Inside the block, what the user can mend ends the command with one line on stderr and exit code 2.

    What a file system, torch or a package says over several lines becomes one; a damaged recording is told of in full.
    """
    from tapstudy.recording.damage import RecordingError

    try:
        yield
    except (typer.Exit, typer.Abort):  # RuntimeErrors, to Python
        raise
    except RecordingError as error:
        _fail(str(error), error)
    except (TypeError, ValueError, OSError, OverflowError, RuntimeError, ImportError) as error:
        _fail(" ".join(str(error).split()) or type(error).__name__, error)


def _fail(message: str, cause: Exception) -> None:
    typer.secho(f"Error: {message}", fg="red", err=True)
    raise typer.Exit(2) from cause
