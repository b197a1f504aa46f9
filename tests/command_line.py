"""Commands in this process. Their tree is built once: that takes longer than most of what tests ask of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from unittest import mock

import typer
from typer import testing
from typer.main import get_command


def invoke(app: typer.Typer, arguments: Sequence[str]) -> testing.Result:
    """Do what `CliRunner().invoke` does."""
    with mock.patch.object(testing, "_get_command", _built):
        return testing.CliRunner().invoke(app, arguments)


_built = cache(get_command)
