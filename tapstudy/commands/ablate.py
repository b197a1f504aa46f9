"""`tapstudy ablate`: a model under every combination of settings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from tapstudy.commands.checks import conditions_of, numbers, out_folder, seeds_of_noise
from tapstudy.commands.errors import user_errors
from tapstudy.commands.subject import SCHEDULER, Asked, takes_subject
from tapstudy.tables import Table

AXIS = """NAME=VALUE,VALUE,...; again for every axis. NAME is method, model, steps, guidance, policy_seed or a field of
TAPConfig; lists are joined by +, as in orders=0+1+2,0+1. Methods: fixed<order>, fixed<order>-<shift> and
those of bench/methods.py that need no fitting: reference, fewer, order0, order1, hermite, dmd, tap, region, step,
drift, two-depths, tap+hermite, oracle, random, shuffled and more"""


@takes_subject
def ablate(
    axis: Annotated[list[str] | None, typer.Option(help=AXIS)] = None,
    out: Annotated[Path, typer.Option(help="folder of the results; the same command resumes")] = Path("sweep"),
    *,
    subject: Asked,
    seeds: Annotated[str, typer.Option(help="seeds separated by commas; every label or prompt with each")] = "0",
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    guidance: Annotated[
        float | None, typer.Option(help="guidance scale; 2 for embedded models, else the pipeline's usual one")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help=SCHEDULER)] = None,
) -> None:
    """Sample with every combination of the axes and compare with the reference of the same seeds and labels.

    Example: tapstudy ablate --axis method=tap,fixed1 --axis interval=4,6,8 --axis probe_depth=0,1 --seeds 0,1
    """
    with user_errors():
        from tapstudy.analysis.stats import mean_interval
        from tapstudy.bench.image_set import pipe_of
        from tapstudy.bench.sweep.axes import parse_axes
        from tapstudy.bench.sweep.cells import product_of
        from tapstudy.bench.sweep.run import sweep
        from tapstudy.bench.sweep.table import table_rows
        from tapstudy.models.embedded import EmbeddedPipeline

        out = out_folder(out, "--out")
        axes = parse_axes(axis or ["method=tap"])
        model, pipe, conditions = subject.load(examples=10)
        if guidance is None and isinstance(pipe, EmbeddedPipeline):
            guidance = 2.0
        common = {
            "model": model,
            "steps": steps,
            "guidance": guidance,
            "seeds": seeds_of_noise(numbers(seeds, int, "--seeds"), "--seeds"),
            "labels": tuple(conditions),
        }
        cells = product_of(axes, **common)
        for name in sorted({cell.model for cell in cells} - {model}):
            conditions_of(pipe_of(name), conditions, "--labels")
        with warnings.catch_warnings():
            # failures are in the table
            warnings.filterwarnings("ignore", message=r"\d+ runs of the sweep failed", category=RuntimeWarning)
            dataset = sweep(cells, out, scheduler=scheduler)
        shown = ["method", *(name for name in axes if name != "method")]
        usual = {
            "model": model,
            "steps": f"{steps} steps",
            "guidance": "usual guidance" if guidance is None else f"guidance {guidance:g}",
        }
        common_to_all = [text for name, text in usual.items() if name not in axes]
        names = ("full passes", "FLOPs ratio", "PSNR to reference [95 %], dB", "SSIM", "label accuracy")
        rows = table_rows(dataset, shown, mean_interval)
        failed: dict[str, list[str]] = {}  # why -> settings
        for row in rows:
            if len(row) == len(shown) + 1:
                failed.setdefault(row.pop(), []).append(", ".join(row))
                row += ["failed", *[""] * (len(names) - 1)]
        title = ", ".join([*common_to_all, f"{dataset.sizes['sample']} images"])
        Table([*shown, *names], rows, title, left=len(shown)).show()
        typer.echo(
            "PSNR and SSIM on images in [0, 1], interval by bootstrap over images. FLOPs: multiply-add = 2, matrix "
            f"products and convolutions. All values: {out / 'sweep.nc'}"
        )
    for reason, settings in failed.items():
        typer.secho(f"{'; '.join(settings)} failed: {reason}", fg="red", err=True)
    if failed:
        raise typer.Exit(1)
