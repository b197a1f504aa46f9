"""`tapstudy bench paper`: the paper's protocol on any pipeline, its numbers beside one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapstudy.commands.checks import at_least, numbers, out_file, out_folder, seeds_of_noise, usual_guidance
from tapstudy.commands.errors import user_errors
from tapstudy.commands.subject import SCHEDULER, Asked, takes_subject
from tapstudy.tables import Table


@takes_subject
def paper(
    out: Annotated[Path, typer.Option(help="page of Markdown to write")] = Path("paper.md"),
    *,
    subject: Asked,
    protocol: Annotated[
        str, typer.Option(help="whose settings: flux, qwen-image or hunyuan-video; by default those of the pipeline")
    ] = "",
    metrics: Annotated[str, typer.Option(help="of lpips, clip, image-reward and vbench, between commas")] = "",
    weights: Annotated[Path | None, typer.Option(help="folder of the metrics' weights; else the usual caches")] = None,
    teacache: Annotated[
        str, typer.Option(help="TeaCache's polynomial for this model: coefficients, highest power first")
    ] = "",
    seed: Annotated[int, typer.Option(help="of the noise; every prompt has its own")] = 0,
    steps: Annotated[int, typer.Option(min=4, help="sampling steps")] = 50,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; the model's usual one")] = None,
    work: Annotated[Path, typer.Option(help="folder of the results; the same command resumes")] = Path("paper"),
    table: Annotated[Path | None, typer.Option(help="netCDF file to write: a value for every image")] = None,
    scheduler: Annotated[str | None, typer.Option(help=SCHEDULER)] = None,
) -> None:
    """Sample FORA, TeaCache, TaylorSeer and TAP at the paper's settings and judge them as it does.

    --prompts also takes DrawBench's table, or a folder that holds it.
    """
    with user_errors():
        import shlex
        import sys

        from tapstudy.bench.image_set import ImageSet
        from tapstudy.bench.paper.metrics import find_metrics
        from tapstudy.bench.paper.page import paper_columns, paper_page, paper_rows
        from tapstudy.bench.paper.prompts import GET_DRAWBENCH, read_drawbench
        from tapstudy.bench.paper.protocol import find_protocol
        from tapstudy.bench.paper.run import run_paper
        from tapstudy.models.machine import Machine, find_device
        from tapstudy.netcdf import write_netcdf

        out, work = out_file(out, "--out", (".md",)), out_folder(work, "--work")
        table = table and out_file(table, "--table", (".nc",))
        at_least(0, guidance=guidance)
        judged = [name for name in metrics.split(",") if name]
        find_metrics(judged, weights)
        coefficients = numbers(teacache, float, "--teacache") if teacache else ()
        (noise,) = seeds_of_noise((seed,), "--seed")
        if not (subject.prompts or subject.prompt or subject.labels):
            raise ValueError(GET_DRAWBENCH)
        model, pipe, conditions = subject.load(read=read_drawbench)
        chosen, scale = find_protocol(protocol, pipe), usual_guidance(pipe) if guidance is None else guidance
        where = str(pipe.device) if subject.offload == "none" else str(find_device(subject.device))
        del pipe  # the metrics need its memory later
        images = ImageSet.of(model, seeds=(noise,), labels=conditions, steps=steps, guidance=scale)
        found = run_paper(
            images, chosen, work, metrics=judged, weights=weights, coefficients=coefficients, device=subject.device,
            scheduler=scheduler,
        )  # fmt: skip
        if table is not None:
            write_netcdf(found, table)
        text = paper_page(found, command=shlex.join(["tapstudy", *sys.argv[1:]]), machine=str(Machine(where)))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
        Table(paper_columns(found), paper_rows(found), f"{model}, {len(images)} images, {steps} steps", left=2).show(
            width=200
        )
        typer.echo(f"Published: of {chosen.model}, {found['published'].attrs['long_name']}. All of it: {out}")
