"""`tapstudy bench`: measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tapstudy.commands.errors import user_errors

app = typer.Typer(no_args_is_help=True, help="Measure speed and quality.")


@app.command("skip-step")
def skip_step(
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    batch_size: Annotated[int, typer.Option(min=1, help="images; guidance doubles it")] = 8,
    steps: Annotated[int, typer.Option(min=4)] = 50,
) -> None:
    """Cost of a skip step beside a full one, and its parts."""
    with user_errors():
        import torch

        from tapstudy import load
        from tapstudy.bench.skip_step import skip_step_cost

        pipe = load(model)
        pipe.set_progress_bar_config(disable=True)
        labels = [i % 10 for i in range(batch_size)]
        cost = skip_step_cost(pipe, lambda: pipe(labels, steps, output_type="latent"))
        typer.echo(f"{model}, batch {batch_size} with guidance, {torch.get_num_threads()} threads, medians:\n{cost}")


@app.command("record")
def record(
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
    batch_size: Annotated[int, typer.Option(min=1, help="images")] = 4,
    steps: Annotated[int, typer.Option(min=4)] = 50,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
) -> None:
    """What recording adds to the time of sampling."""
    with user_errors():
        from tapstudy import load
        from tapstudy.bench.recording_overhead import recording_overhead

        pipe = load(model)
        pipe.set_progress_bar_config(disable=True)
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
        from tapstudy import load
        from tapstudy.models.data import load_images
        from tapstudy.models.embedded import load_classifier
        from tapstudy.models.quality import Judge, measure_quality

        pipe = load(model)
        pipe.set_progress_bar_config(disable=True)
        judge = Judge(load_classifier(), load_images("mnist", "test", data))
        found, _ = measure_quality(pipe, judge, count=count, guidance_scale=guidance)
        typer.echo(
            f"{model}: label accuracy {100 * found.label_accuracy:.1f} % and Frechet distance "
            f"{found.frechet_distance:.3f} over {count} samples at guidance {guidance:g} "
            f"(judge: {100 * found.classifier_accuracy:.2f} % of the test images)"
        )
