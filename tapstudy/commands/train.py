"""`tapstudy train`: hands over to the package that trains the embedded models, which a clone has beside this one."""

from __future__ import annotations

from importlib.util import find_spec

import typer

from tapstudy.commands.errors import user_errors

MISSING = (
    "the package tapstudy_training is missing: it is part of a clone of the repository, not of an installed tapstudy; "
    "in a clone, run `pip install -e '.[train]'`"
)


def add_training(app: typer.Typer) -> None:
    """Add the commands that train to the command line; without their package, one that says how to get it."""
    if find_spec("tapstudy_training") is not None:
        from tapstudy_training.command import app as train

        app.add_typer(train, name="train")
    else:
        anything = {"allow_extra_args": True, "ignore_unknown_options": True}
        app.command("train", context_settings=anything)(say_where_training_is)


def say_where_training_is() -> None:
    """Train the embedded models, in a clone of the repository."""
    with user_errors():
        raise ImportError(MISSING)
