"""`tapstudy bench`: measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapstudy.commands.checks import (
    LABELS,
    at_least,
    find_dtype,
    labelled,
    listed,
    numbers,
    out_file,
    out_folder,
    seeds_of_noise,
)
from tapstudy.commands.claims import verdicts
from tapstudy.commands.errors import user_errors
from tapstudy.commands.paper import paper
from tapstudy.tables import Table

if TYPE_CHECKING:
    import xarray as xr

NETCDF, MARKDOWN = (".nc",), (".md",)

app = typer.Typer(no_args_is_help=True, help="Measure speed and quality.")
app.command("paper")(paper)
app.command("verdicts")(verdicts)


@app.command("speed")
def speed(
    model: Annotated[
        str,
        typer.Option(
            help="models separated by commas: embedded, folders, or presets such as flux-200m and flux-dev; with @ and "
            "a number of images after the name where it is not --batch-size"
        ),
    ] = "mnist-dit,flux-200m",
    steps: Annotated[int, typer.Option(help="sampling steps of a loop")] = 50,
    interval: Annotated[int, typer.Option(help="N: a full step every N")] = 8,
    warmup_steps: Annotated[int, typer.Option(help="w: the first w steps run in full")] = 3,
    methods: Annotated[str, typer.Option(help="methods separated by commas; all by default")] = "",
    repeats: Annotated[int, typer.Option(help="how many count; methods alternate within each")] = 3,
    batch_size: Annotated[int | None, typer.Option(help="images; by default 8 of an embedded model, 1 of a preset")] = (
        None
    ),
    dtype: Annotated[str, typer.Option(help="of the weights; by default float32, bfloat16 of a preset")] = "",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda")] = "auto",
    markdown: Annotated[bool, typer.Option("--markdown", help="print the tables in Markdown")] = False,
    out: Annotated[
        Path | None, typer.Option(help="netCDF file to write; of a call that was cut short: to go on with")
    ] = None,
    table: Annotated[Path | None, typer.Option(help="print what this file holds, and measure nothing")] = None,
) -> None:
    """Time steps and whole loops: TAP, order 0 and other people's caches beside plain sampling.

    The default models take a quarter of an hour on two quiet cores.
    """
    with user_errors():
        from tapstudy.analysis.study import load_table, save_table
        from tapstudy.bench.speed import table as speed_table
        from tapstudy.bench.speed.methods import Plan
        from tapstudy.bench.speed.run import speed as run

        out = out and out_file(out, "--out", NETCDF)
        at_least(1, repeats=repeats, batch_size=batch_size)
        if table is not None:
            found = load_table(table.parent, table.stem)
        else:
            plan = Plan(steps=steps, interval=interval, warmup_steps=warmup_steps)
            found = run(
                [name for name in model.split(",") if name],
                plan,
                methods=[name for name in methods.split(",") if name],
                repeats=repeats,
                batch_size=batch_size,
                dtype=find_dtype(dtype, "--dtype") if dtype else None,
                device=device,
                keep=None if out is None else lambda measured: save_table(measured, out.parent, out.stem),
                earlier=load_table(out.parent, out.stem) if out is not None and out.is_file() else None,
            )
        if markdown:
            typer.echo(speed_table.page(found))
        else:
            for name in found["model"].values.tolist():
                loops, title = speed_table.loop_rows(found, name), speed_table.title(found, name)
                Table(speed_table.LOOP_COLUMNS, loops, title).show()
                Table(speed_table.STEP_COLUMNS, speed_table.step_rows(found, name)).show()
        if out is not None and table is None:
            typer.echo(f"wrote {out}")


@app.command("memory")
def memory(
    model: Annotated[str, typer.Option(help="models separated by commas, as for bench speed")] = (
        "mnist-dit,flux-dev,qwen-image,hunyuan-video"
    ),
    steps: Annotated[int, typer.Option(help="sampling steps of a loop")] = 12,
    interval: Annotated[int, typer.Option(help="N: a full step every N")] = 8,
    history_dtypes: Annotated[str, typer.Option(help="dtypes of the stored residuals")] = "float32,bfloat16",
    batch_size: Annotated[int | None, typer.Option(help="images")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu (presets are shown shapes only) or cuda")] = "auto",
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table in Markdown")] = False,
    out: Annotated[Path | None, typer.Option(help="netCDF file to write")] = None,
) -> None:
    """Measure the memory of the history, beside its formula, and that of third-party caches."""
    with user_errors():
        from tapstudy.analysis.study import save_table
        from tapstudy.bench.speed import table as speed_table
        from tapstudy.bench.speed.memory import memory as run
        from tapstudy.bench.speed.methods import Plan

        out = out and out_file(out, "--out", NETCDF)
        at_least(1, batch_size=batch_size)
        dtypes = [find_dtype(name, "--history-dtypes") for name in history_dtypes.split(",")]
        names = [name for name in model.split(",") if name]
        plan = Plan(steps=steps, interval=interval)
        found = run(names, plan, history_dtypes=dtypes, batch_size=batch_size, device=device)
        rows, title = speed_table.memory_rows(found), "memory beside the model, MB = 1e6 bytes"
        told = Table(speed_table.MEMORY_COLUMNS, rows, title)
        if markdown:
            typer.echo(told.markdown())
        else:
            told.show()
        if out is not None:
            typer.echo(f"wrote {save_table(found, out.parent, out.stem)}")


@app.command("errors")
def errors(
    out: Annotated[Path, typer.Option(help="netCDF file to write")] = Path("data/study/errors.nc"),
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    labels: Annotated[str, typer.Option(help=LABELS)] = "",
    seed: Annotated[int, typer.Option(help="of the noise")] = 11,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    interval: Annotated[int, typer.Option(help="N: a full step every N")] = 8,
) -> None:
    """Tell how the errors of TAP, of order 1 and of the oracle build up along their trajectories, step by step.

    The embedded model takes about three minutes on two cores.
    """
    with user_errors():
        from tapstudy import TAPConfig
        from tapstudy.analysis.error_propagation import error_propagation, per_step
        from tapstudy.analysis.study import save_table
        from tapstudy.bench.claims.solver_runs import solver_runs
        from tapstudy.bench.image_set import ImageSet
        from tapstudy.policies.fixed import FixedPolicy
        from tapstudy.policies.oracle import OraclePolicy
        from tapstudy.policies.tap import TAPPolicy

        out = out_file(out, "--out", NETCDF)
        at_least(1, steps=steps)
        config = TAPConfig(interval=interval)
        pipe, chosen = listed(model, labels)
        images = ImageSet.of(model, seeds=(seed,), labels=chosen, steps=steps)
        seeds_of_noise(images.noise_seeds, "1000 times --seed plus the label")
        policies = {"order1": FixedPolicy(1, config=config), "tap": TAPPolicy(config), "oracle": OraclePolicy(config)}
        runs = solver_runs(pipe, policies, images, batch_size=1)
        table = per_step(error_propagation(runs)).assign_attrs(model=model, interval=interval, guidance=images.guidance)
        typer.echo(f"wrote {save_table(table, out.parent, out.stem)}")


@app.command("record")
def record(
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    batch_size: Annotated[int, typer.Option(min=1, help="images")] = 4,
    steps: Annotated[int, typer.Option(min=4)] = 50,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Tell what recording adds to the time of sampling."""
    with user_errors():
        from tapstudy.bench.speed.recordings import recording_overhead

        pipe = labelled(model)
        labels = [i % 10 for i in range(batch_size)]
        for name, (seconds, overhead) in recording_overhead(pipe, labels=labels, steps=steps, repeats=repeats).items():
            typer.echo(f"{name:<20} {seconds:7.2f} s  ({100 * overhead:+.1f} %)")


@app.command("quality")
def quality(
    data: Annotated[Path | None, typer.Option(help="folder with mnist_test.npz; fetched when absent")] = None,
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    count: Annotated[int, typer.Option(min=200, help="samples")] = 1000,
    guidance: Annotated[float, typer.Option(help="guidance scale")] = 2.0,
) -> None:
    """Label accuracy and Frechet distance of a model's samples."""
    with user_errors():
        from tapstudy.models.data import load_images
        from tapstudy.models.embedded import data_set_of, load_classifier
        from tapstudy.models.quality import Judge, measure_quality

        at_least(0, guidance=guidance)
        pipe = labelled(model)
        judge = Judge(load_classifier(pipe), load_images(data_set_of(pipe), "test", data))
        found, _ = measure_quality(pipe, judge, count=count, guidance_scale=guidance)
        typer.echo(
            f"{model}: label accuracy {100 * found.label_accuracy:.1f} % and Frechet distance "
            f"{found.frechet_distance:.3f} over {count} samples at guidance {guidance:g} "
            f"(judge: {100 * found.classifier_accuracy:.2f} % of the test images)"
        )


@app.command("frontier")
def frontier(
    work: Annotated[Path, typer.Option(help="folder of the results; the same command resumes")] = Path("frontier"),
    out: Annotated[Path, typer.Option(help="netCDF file to write")] = Path("frontier.nc"),
    page: Annotated[Path | None, typer.Option(help="also write the tables as a page of Markdown")] = None,
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    seeds: Annotated[str, typer.Option(help="test seeds; every label is sampled with each")] = "31,32",
    held_out: Annotated[str, typer.Option(help="seeds on which everything is fitted and chosen")] = "41,42,43",
    labels: Annotated[str, typer.Option(help=LABELS)] = "",
    passes: Annotated[str, typer.Option(help="numbers of full passes, each that of an S(N, 3)")] = "14,10,8",
    methods: Annotated[str, typer.Option(help="methods separated by commas; all by default")] = "",
    schedules: Annotated[
        str, typer.Option(help="schedules beside S(N, 3) and methods' own, separated by commas; all by default")
    ] = "",
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    guidance: Annotated[float, typer.Option(help="guidance scale")] = 2.0,
    tuning: Annotated[int, typer.Option(min=1, help="held-out images to choose on; the others are fitted to")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="of the measurement of the wall time")] = 3,
    thorough: Annotated[
        bool, typer.Option(help="all methods at every number of passes; else most of them at the fewest only")
    ] = False,
) -> None:
    """Run every method on one model in one run: quality against full passes, FLOPs, time and memory.

    Thresholds, weights, masks and fixed predictors are chosen on the held-out seeds alone. With --held-out 21 --tuning
    3 the embedded model of digits takes about 40 minutes on two cores, and 15 with --passes 8 --methods
    order1,best-fixed,tap,step,drift,fitted,teacache; with more images to choose on it takes longer.
    """
    with user_errors():
        import shlex
        import sys

        from tapstudy.bench.frontier.comparison import frontier as run
        from tapstudy.bench.plan import FrontierPlan
        from tapstudy.models.machine import Machine

        out, work = out_file(out, "--out", NETCDF), out_folder(work, "--work")
        page = page and out_file(page, "--page", MARKDOWN)
        at_least(0, guidance=guidance)
        at_least(1, steps=steps)
        plan = FrontierPlan(
            model=model,
            seeds=seeds_of_noise(numbers(seeds, int, "--seeds"), "--seeds"),
            held_out=seeds_of_noise(numbers(held_out, int, "--held-out"), "--held-out"),
            labels=listed(model, labels)[1],
            passes=numbers(passes, int, "--passes"),
            steps=steps,
            guidance=guidance,
            tuning=tuning,
        )
        named = [name for name in methods.split(",") if name]
        further = [name for name in schedules.split(",") if name]
        found = run(plan, work, methods=named, schedules=further, thorough=thorough, repeats=repeats)
        found = found.assign_attrs(commands=shlex.join(["tapstudy", *sys.argv[1:]]), machine=str(Machine("cpu")))
        _tell_frontier(found, out, page)


@app.command("join")
def join(
    tables: Annotated[list[Path], typer.Argument(help="netCDF files that `bench frontier` wrote")],
    out: Annotated[Path, typer.Option(help="netCDF file to write")] = Path("frontier.nc"),
    page: Annotated[Path | None, typer.Option(help="also write the tables as a page of Markdown")] = None,
) -> None:
    """Put tables of `bench frontier` together that were made by several runs on the same images.

    A row that several have is taken from the first, and must agree; wall times are scaled by those of plain sampling.
    """
    with user_errors():
        import shlex
        import sys

        from tapstudy.analysis.study import load_table
        from tapstudy.bench.frontier.join import joined

        out = out_file(out, "--out", NETCDF)
        page = page and out_file(page, "--page", MARKDOWN)
        found = joined({str(path): load_table(path.parent, path.stem) for path in tables})
        commands = [*found.attrs["commands"].splitlines(), shlex.join(["tapstudy", *sys.argv[1:]])]
        _tell_frontier(found.assign_attrs(commands="\n".join(commands)), out, page)


def _tell_frontier(found: xr.Dataset, out: Path, page: Path | None) -> None:
    """Write the comparison and show it."""
    from tapstudy.bench.frontier.table import COLUMNS, frontier_page, tables
    from tapstudy.netcdf import write_netcdf

    write_netcdf(found, out)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(frontier_page(found))
    plan = json.loads(found.attrs["plan"])
    for count, rows in tables(found).items():
        title = f"{plan['model']}, {count} full passes of {plan['steps']} steps, {found.sizes['sample']} images"
        Table(COLUMNS, rows, title, left=2).show(width=200)
    typer.echo(
        "PSNR and SSIM on images in [0, 1]; intervals by bootstrap over images, differences paired. FLOPs: "
        f"multiply-add = 2. Time: one image, median of {found.sizes['repeat']}. * schedule chosen on held-out images. "
        f"Distance: {found['distance'].attrs['long_name']}. All values: {out}"
    )


@app.command("quantised")
def quantised(
    work: Annotated[Path, typer.Option(help="folder of the results; the same command resumes")] = Path("quantised"),
    out: Annotated[
        Path | None, typer.Option(help="netCDF file to write; data/study/quantised.nc, or quantised-by-step.nc there")
    ] = None,
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    seeds: Annotated[str, typer.Option(help="test seeds; every label is sampled with each")] = "31",
    held_out: Annotated[str, typer.Option(help="seeds to whose images corrections are fitted")] = "41",
    labels: Annotated[str, typer.Option(help=LABELS)] = "",
    bits: Annotated[str, typer.Option(help="bits of a weight, separated by commas")] = "8,6,4,3",
    intervals: Annotated[str, typer.Option(help="N of schedules S(N, 3), separated by commas")] = "8,4",
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    guidance: Annotated[float, typer.Option(help="guidance scale")] = 2.0,
    by_step: Annotated[
        bool, typer.Option("--by-step", help="no caching: weights rounded at early, late, spread or all steps")
    ] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table in Markdown")] = False,
) -> None:
    """Round weights, skip steps, do both: which error is first, do they add, and what do corrections take away.

    The embedded model of digits takes about half an hour on a core. With --by-step nothing is cached: weights are
    rounded at some steps only, and the table tells whether it matters at which.
    """
    with user_errors():
        from tapstudy.analysis.quantised import COLUMNS, STEP_COLUMNS, step_rows, table_rows
        from tapstudy.analysis.study import save_table
        from tapstudy.bench.plan import StudyPlan
        from tapstudy.bench.sweep.quantised import quantised as run
        from tapstudy.bench.sweep.rounded_steps import rounded_steps

        out = out or Path("data/study") / ("quantised-by-step.nc" if by_step else "quantised.nc")
        out, work = out_file(out, "--out", NETCDF), out_folder(work, "--work")
        at_least(0, guidance=guidance)
        at_least(1, steps=steps)
        plan = StudyPlan(
            model=model,
            seeds=seeds_of_noise(numbers(seeds, int, "--seeds"), "--seeds"),
            held_out=seeds_of_noise(numbers(held_out, int, "--held-out"), "--held-out"),
            labels=listed(model, labels)[1],
            steps=steps,
            guidance=guidance,
            tuning=1,
        )
        few = numbers(bits, int, "--bits")
        if by_step:
            found = rounded_steps(plan, work, bits=few)
        else:
            found = run(plan, work, bits=few, intervals=numbers(intervals, int, "--intervals"))
        save_table(found, out.parent, out.stem)
        columns, rows = (STEP_COLUMNS, step_rows(found)) if by_step else (COLUMNS, table_rows(found))
        table = Table(columns, rows, f"{model}, squared errors times 1000, {found.sizes['sample']} images")
        if markdown:
            typer.echo(table.markdown())
        else:
            table.show(width=200)
        typer.echo(f"wrote {out}")


@app.command("rescoring")
def rescoring(
    samples: Annotated[int, typer.Option(min=1, help="synthetic images of 50 steps and 196 tokens of width 192")] = 8,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """Tell how fast recorded features are rescored, with 15 and with 150 candidates."""
    with user_errors():
        from tapstudy.bench.speed.recordings import rescoring_speed

        found = rescoring_speed(samples=samples, repeats=repeats)
        for output in found["output"].values.tolist():
            for candidates in found["candidates"].values.tolist():
                one = found.sel(output=output, candidates=candidates)
                typer.echo(
                    f"{output:<9} {candidates:4d} candidates {float(one['seconds']):8.2f} s "
                    f"{float(one['rate']) / 1e6:7.1f} million scores/s ({float(one['cpu_rate']) / 1e6:.1f} per core)"
                )
