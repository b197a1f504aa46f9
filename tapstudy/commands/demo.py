"""`tapstudy demo`: TAP on the embedded model, with a table and three figures, in minutes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from tapstudy.commands.checks import listed, out_folder
from tapstudy.commands.errors import user_errors
from tapstudy.tables import Table


def demo(
    out: Annotated[Path, typer.Option(help="folder for the figures")] = Path("figures"),
    seeds: Annotated[int, typer.Option(min=1, help="images per label or prompt")] = 2,
    model: Annotated[str, typer.Option(help="embedded model or model folder")] = "mnist-dit",
) -> None:
    """Sample images with the reference, plain sampling with fewer steps, FORA, Taylor and TAP, and compare them."""
    with user_errors():
        _run(out_folder(out, "--out"), seeds, model)


def _run(out: Path, seeds: int, model: str) -> None:
    from tapstudy import TAPConfig
    from tapstudy import record as make_recording
    from tapstudy.analysis.clean_image import clean_images
    from tapstudy.analysis.comparison_table import comparison_table
    from tapstudy.analysis.proxy_correlation import proxy_correlation
    from tapstudy.analysis.summaries import summarise
    from tapstudy.bench.compare import compare_images
    from tapstudy.bench.image_set import ImageSet
    from tapstudy.plots.choice_maps import plot_choice_maps
    from tapstudy.plots.image_grid import plot_image_grid
    from tapstudy.plots.proxy_vs_truth import plot_proxy_vs_truth
    from tapstudy.plots.style import save

    pipe, labels = listed(model, "")
    images = ImageSet.of(model, seeds=tuple(range(seeds)), labels=labels)
    comparison = compare_images(images)

    title = f"{model}, {len(images)} images, {images.steps} steps, guidance {images.guidance:g}"
    Table(*comparison_table(comparison), title, left=4, breaks=5).show(width=180)
    typer.echo(
        "PSNR and SSIM on images in [0, 1], interval by bootstrap over images. FLOPs: multiply-add = 2, matrix "
        "products and convolutions. Latency: the timed calls of a row, one per seed, after a warm-up."
    )

    typer.echo("Scoring every predictor along the exact trajectory of four images ...")
    pairs = tuple((seed, labels[i]) for seed, i in zip(range(4), (2, 3, 5, 8), strict=True))
    call = {**ImageSet(model, pairs, images.steps).call, "seed": [0, 1, 2, 3]}
    fields = ("proxy_loss", "true_error", "choice", "latent", "image")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "scores.zarr"
        scores = make_recording(pipe, [call], path, fields=fields, config=TAPConfig(interval=8), progress=False).load()
    scores = scores.assign(clean_image=clean_images(scores))
    correlation = summarise(proxy_correlation(scores, measures=("spearman",)), "distance")
    figures: dict[str, Any] = {
        "demo_images": plot_image_grid(comparison, samples=10),
        "demo_choice_maps": plot_choice_maps(scores, sample=1),
        "demo_proxy_vs_truth": plot_proxy_vs_truth(scores, correlation["spearman"]),
    }
    for name, figure in figures.items():
        for path in save(figure, out, name):
            typer.echo(f"wrote {path}")
