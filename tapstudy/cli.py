"""The command line: each command is a thin wrapper around a function of the package."""

from __future__ import annotations

from typing import Annotated

import typer

import tapstudy
from tapstudy.commands.ablate import ablate
from tapstudy.commands.allocator import keep_large_buffers
from tapstudy.commands.analyze import analyze
from tapstudy.commands.bench import app as bench
from tapstudy.commands.claims import claims
from tapstudy.commands.compare import compare
from tapstudy.commands.demo import demo
from tapstudy.commands.explore import explore
from tapstudy.commands.figures import figures
from tapstudy.commands.fit_schedule import fit_schedule
from tapstudy.commands.info import info
from tapstudy.commands.log import show_log
from tapstudy.commands.record import record
from tapstudy.commands.roughness import roughness
from tapstudy.commands.sample import sample
from tapstudy.commands.train import add_training


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tapstudy {tapstudy.__version__}")
        raise typer.Exit


def start(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Prepare the process for any command."""
    keep_large_buffers()
    show_log()


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    help="Study and run TAP, the Token-Adaptive Predictor, on diffusion transformers.",
    callback=start,
    context_settings={"help_option_names": ["-h", "--help"]},  # of every command below, too
)
app.command("demo")(demo)
app.command("record")(record)
app.command("sample")(sample)
app.command("compare")(compare)
app.command("fit-schedule")(fit_schedule)
app.command("ablate")(ablate)
app.command("analyze")(analyze)
app.command("claims")(claims)
app.command("explore")(explore)
app.command("info")(info)
app.command("figures")(figures)
app.command("roughness")(roughness)
app.add_typer(bench, name="bench")
add_training(app)

if __name__ == "__main__":
    app()
