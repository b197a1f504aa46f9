"""`tapstudy demo`: TAP on the embedded model, with a table and three figures, in minutes."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from tapstudy.commands.checks import out_folder
from tapstudy.commands.errors import user_errors


def demo(
    out: Annotated[Path, typer.Option(help="folder for the figures")] = Path("figures"),
    seeds: Annotated[int, typer.Option(min=1, help="images per label")] = 2,
) -> None:
    """Sample digits with the reference, plain sampling with fewer steps, FORA, Taylor and TAP, and compare them."""
    with user_errors():
        _run(out_folder(out, "--out"), seeds)


def _run(out: Path, seeds: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from tapstudy import TAPConfig, load
    from tapstudy import record as make_recording
    from tapstudy.analysis.clean_image import clean_images
    from tapstudy.analysis.proxy_correlation import proxy_correlation
    from tapstudy.analysis.stats import mean_interval
    from tapstudy.analysis.summaries import summarise
    from tapstudy.bench.compare import Request, compare, table_rows
    from tapstudy.models.embedded import load_classifier
    from tapstudy.plots.choice_maps import plot_choice_maps
    from tapstudy.plots.image_grid import plot_image_grid
    from tapstudy.plots.proxy_vs_truth import plot_proxy_vs_truth
    from tapstudy.plots.style import save

    console = Console()
    pipe = load("mnist-dit")
    request = Request(seeds=tuple(range(seeds)))
    comparison = compare(pipe, load_classifier(), request=request)

    table = Table(
        title=f"mnist-dit, {len(request.pairs)} digits, {request.steps} steps, guidance {request.guidance_scale:g}"
    )
    for name in ("N", "method", "full passes", "step mask (F full, . skipped)"):
        table.add_column(name, no_wrap=True)
    for name in ("FLOPs ratio", "latency ratio", "PSNR to reference [95 %], dB", "label accuracy"):
        table.add_column(name, justify="right")
    for i, row in enumerate(table_rows(comparison, mean_interval)):
        table.add_row(*row, end_section=i % 5 == 0)
    Console(width=max(console.width, 170)).print(table)
    console.print(
        "PSNR on images in [0, 1], interval by bootstrap over images. FLOPs: multiply-add = 2, matrix products and "
        "convolutions. Latency: one timed call per row after a warm-up."
    )

    console.print("Scoring every predictor along the exact trajectory of four digits ...")
    call: dict[str, Any] = {"class_labels": [2, 3, 5, 8], "seed": [0, 1, 2, 3], "num_inference_steps": request.steps}
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
            console.print(f"wrote {path}")
