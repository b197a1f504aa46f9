"""`tapstudy figures`: every figure of the study, from recordings and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapstudy.commands.checks import out_folder
from tapstudy.commands.errors import user_errors


def figures(
    names: Annotated[list[str] | None, typer.Argument(help="which; all by default, --list says what there is")] = None,
    out: Annotated[Path | None, typer.Option(help="folder to write to; figures, of another --model one in it")] = None,
    data: Annotated[Path, typer.Option(help="folder with recordings, study and published")] = Path("data"),
    model: Annotated[str, typer.Option(help="whose recordings and tables")] = "mnist-dit",
    show: Annotated[bool, typer.Option("--list", help="list the figures and stop")] = False,
) -> None:
    """Make the figures as PNG and SVG. The same data gives the same bytes; a figure without its data is left out."""
    with user_errors():
        from tapstudy.figures import FIGURES, draw_all
        from tapstudy.sources import MissingData, Sources, folder_of

        if show:
            for name, make in FIGURES.items():
                typer.echo(f"{name:<24} {make.__doc__}")
            return
        if not data.is_dir():
            raise FileNotFoundError(f"no folder {data}: say where the data is with --data")
        folder = out_folder(out or folder_of(model, "figures"), "--out")
        for name, found in draw_all(Sources(data, model), folder, names=names or ()):
            if isinstance(found, MissingData):
                typer.echo(f"{name} left out: {found}")
            else:
                typer.echo(f"{name}: {', '.join(map(str, found))}")
