"""`tapstudy compare`: methods side by side on any pipeline, as a table and a page of images."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from tapstudy.commands.checks import at_least, numbers, out_file, out_folder, seeds_of_noise, usual_guidance
from tapstudy.commands.errors import user_errors
from tapstudy.commands.subject import SCHEDULER, Asked, takes_subject
from tapstudy.tables import Table


@takes_subject
def compare(
    out: Annotated[Path, typer.Option(help="page to write")] = Path("comparison.html"),
    *,
    subject: Asked,
    methods: Annotated[str, typer.Option(help="names between commas; `tapstudy ablate --help` lists them")] = (
        "fewer,order0,order1,order2,tap"
    ),
    schedule: Annotated[list[Path] | None, typer.Option(help="file of `tapstudy fit-schedule`; again for more")] = None,
    peers: Annotated[
        bool, typer.Option(help="also diffusers' first-block cache and TaylorSeer, and cache-dit where it is installed")
    ] = False,
    intervals: Annotated[str, typer.Option(help="N of the schedules S(N, 3), between commas")] = "8",
    seeds: Annotated[str, typer.Option(help="every label or prompt with each")] = "0",
    steps: Annotated[int, typer.Option(min=1, help="sampling steps")] = 50,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; the model's usual one")] = None,
    metrics: Annotated[
        str, typer.Option(help="further measures, of lpips, clip, image-reward and vbench, between commas")
    ] = "",
    weights: Annotated[Path | None, typer.Option(help="folder of the metrics' weights; else the usual caches")] = None,
    work: Annotated[Path | None, typer.Option(help="folder of the results; the same command resumes")] = None,
    table: Annotated[Path | None, typer.Option(help="netCDF file to write, images included")] = None,
    scheduler: Annotated[str | None, typer.Option(help=SCHEDULER)] = None,
) -> None:
    """Sample the same noise under every method: images, differences, masks, cost and distance to the reference."""
    with user_errors():
        from tapstudy.analysis.comparison_table import comparison_table
        from tapstudy.bench.compare import REFERENCE, compare_images, rows_of
        from tapstudy.bench.image_set import ImageSet
        from tapstudy.bench.paper.metrics import find_metrics, load_metrics
        from tapstudy.explorer.comparison import write_comparison
        from tapstudy.instrument.belongs import check_class
        from tapstudy.models.machine import find_device
        from tapstudy.netcdf import write_netcdf
        from tapstudy.policies.fitted_schedule import FittedSchedule

        out = out_file(out, "--out", (".html", ".htm"))
        work = work and out_folder(work, "--work")
        table = table and out_file(table, "--table", (".nc",))
        at_least(0, guidance=guidance)
        judged = list(find_metrics([name for name in metrics.split(",") if name], weights))
        named: dict[str, Any] = {name: name for name in map(str.strip, methods.split(",")) if name}
        stems = [path.stem for path in schedule or []]
        for path in schedule or []:
            told = path.stem if stems.count(path.stem) == 1 else str(path)
            named[f"fitted schedule ({told})"] = FittedSchedule.load(path)
        chosen = seeds_of_noise(numbers(seeds, int, "--seeds"), "--seeds")
        shown = numbers(intervals, int, "--intervals")
        rows_of(named, shown, REFERENCE, steps)
        kind = subject.pipeline_class()
        for one in named.values():
            if isinstance(one, FittedSchedule) and kind is not None:
                check_class(kind, one)
        model, pipe, conditions = subject.load(examples=10)
        if peers:
            named |= _peers(pipe, shown[0])
        scale = usual_guidance(pipe) if guidance is None else guidance
        images = ImageSet.of(model, seeds=chosen, labels=conditions, steps=steps, guidance=scale)
        loaded = load_metrics(judged, device=find_device(subject.device), weights=weights)
        with warnings.catch_warnings(record=True) as failed:  # what failed is told below, the others are not lost
            warnings.simplefilter("always", RuntimeWarning)
            found = compare_images(images, named, intervals=shown, metrics=loaded, folder=work, scheduler=scheduler)
        write_comparison(found, out)
        if table is not None:
            write_netcdf(found, table, packed=True)
        title = f"{model}, {len(images)} images, {steps} steps"
        Table(*comparison_table(found), title, left=4).show(width=180)
        typer.echo(
            "PSNR and SSIM on images in [0, 1], interval by bootstrap over images. FLOPs: of the transformer, "
            f"multiply-add = 2. Latency: wall time on this machine, as loaded as it was. Images: {out}"
        )
        for warning in failed:
            typer.secho(str(warning.message), fg="red", err=True)


def _peers(pipe: Any, interval: int) -> dict[str, Any]:
    """Return other people's caches with their usual settings."""
    from tapstudy.bench.engine import Setting
    from tapstudy.bench.speed import third_party
    from tapstudy.extras import need

    def of(make: Any, text: str) -> Setting:
        return Setting.third_party(make, text)

    found = {
        "diffusers FirstBlockCache": of(third_party.first_block_cache, "diffusers FirstBlockCache, usual threshold"),
        "diffusers TaylorSeer": of(
            lambda target: third_party.taylorseer_cache(target, interval=interval),
            f"diffusers TaylorSeer, N={interval}",
        ),
    }
    try:
        need("cache-dit DBCache", "cache_dit")
        found["cache-dit DBCache"] = of(third_party.dbcache, "cache-dit DBCache, usual settings")
    except ModuleNotFoundError as missing:
        typer.echo(f"left out: {missing}", err=True)
    return found
