"""`tapstudy demo`: TAP on the embedded models, with a table for each and four figures, in minutes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from tapstudy.commands.checks import listed, out_folder, usual_guidance
from tapstudy.commands.errors import user_errors
from tapstudy.tables import Table


def demo(
    out: Annotated[Path, typer.Option(help="folder for the figures")] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, help="images per label or prompt")] = 1,
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
) -> None:
    """Sample images with the reference, plain sampling with fewer steps, FORA, Taylor and TAP, and compare them."""
    with user_errors():
        _run(out_folder(out, "--out"), seeds, model)


def _run(out: Path, seeds: int, model: str) -> None:
    from tapstudy import TAPConfig
    from tapstudy import record as make_recording
    from tapstudy.analysis.caption import caption
    from tapstudy.analysis.clean_image import clean_images
    from tapstudy.analysis.proxy_correlation import proxy_correlation
    from tapstudy.analysis.summaries import summarise
    from tapstudy.bench.compare import compare_images
    from tapstudy.bench.image_set import ImageSet
    from tapstudy.plots.choice_maps import plot_choice_maps
    from tapstudy.plots.image_grid import plot_image_grid
    from tapstudy.plots.proxy_vs_truth import plot_proxy_vs_truth
    from tapstudy.sources import MODEL

    pipe, labels = listed(model, "")
    comparison = compare_images(ImageSet.of(model, seeds=tuple(range(seeds)), labels=labels))
    _table(comparison)
    _save(plot_image_grid(comparison, samples=10), out, "demo_images", _settings(comparison))

    typer.echo("Scoring every predictor along the exact trajectory of four images ...")
    pairs = tuple((seed, labels[i]) for seed, i in zip(range(4), (2, 3, 5, 8), strict=True))
    call = {**ImageSet(model, pairs, comparison.attrs["steps"]).call, "seed": [0, 1, 2, 3]}
    fields = ("proxy_loss", "true_error", "choice", "latent", "image")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scores.zarr"
        scores = make_recording(
            pipe, [call], path, fields=fields, config=TAPConfig(interval=8), model=model, progress=False
        ).load()
    scores = scores.assign(clean_image=clean_images(scores))
    correlation = summarise(proxy_correlation(scores, measures=("spearman",)), "distance")
    on = "TAP on S(8, 3), exact trajectories"
    _save(plot_choice_maps(scores, sample=1), out, "demo_choice_maps", f"{caption(scores.isel(sample=[1]))} · {on}")
    _save(plot_proxy_vs_truth(scores, correlation["spearman"]), out, "demo_proxy_vs_truth", f"{caption(scores)} · {on}")
    if model == MODEL:
        _prompts(out)
        typer.echo(
            "Few and easy images: what holds on more of them, on other full steps and against controls is told in "
            "docs/findings.md."
        )


def _prompts(out: Path, *, model: str = "emoji-flux", count: int = 3) -> None:
    """Sample images from prompts, in full, with fewer steps, and with TAP on the full steps fitted to the model."""
    from tapstudy.bench.compare import Asked, compare_images
    from tapstudy.bench.image_set import ImageSet
    from tapstudy.models.embedded import data_folder
    from tapstudy.plots.image_grid import plot_image_grid
    from tapstudy.policies.fitted_schedule import FittedSchedule
    from tapstudy.policies.tap import TAPPolicy
    from tapstudy.sources import folder_of

    fitted = folder_of(model, data_folder() / "study") / "schedule.json"
    try:
        schedule, (pipe, prompts) = FittedSchedule.load(fitted), listed(model, "")
    except FileNotFoundError as missing:
        typer.echo(f"no images of {model}: {missing}")
        return
    typer.echo(f"Sampling {count} images from prompts with {model} ...")
    images = ImageSet.of(
        model, labels=prompts[:count], seeds=(0,), steps=schedule.num_steps, guidance=usual_guidance(pipe)
    )
    methods: dict[str, Asked] = {"fewer": "fewer", "TAP, fitted full steps": TAPPolicy(schedule.config())}
    comparison = compare_images(images, methods, intervals=(8,))
    _table(comparison)
    _save(plot_image_grid(comparison, images=True), out, "demo_prompts", _settings(comparison))


def _table(comparison: Any) -> None:
    from tapstudy.analysis.comparison_table import comparison_table

    runs = comparison.sizes["run"]
    breaks = 5 if runs > 5 else 0  # a line after the reference, and after every N
    Table(*comparison_table(comparison), _settings(comparison), left=4, breaks=breaks).show(width=190)
    typer.echo(
        "PSNR and SSIM on images in [0, 1], interval by bootstrap over images. FLOPs: multiply-add = 2, matrix "
        "products and convolutions. Latency: the timed calls of a row, one per seed, after a warm-up."
    )


def _settings(comparison: Any) -> str:
    from tapstudy.analysis.caption import caption

    return caption(comparison)


def _save(figure: Any, out: Path, name: str, told: str) -> None:
    from tapstudy.plots.style import save, small_print

    small_print(figure, told)
    for path in save(figure, out, name):
        typer.echo(f"wrote {path}")
