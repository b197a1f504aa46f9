"""Images without acceleration, and how far from them every method ends."""

from __future__ import annotations

from textwrap import fill

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tapstudy.plots.style import bare, draw_image, style, subplots


@style()
def plot_image_grid(comparison: xr.Dataset, *, samples: int | None = None, images: bool = False) -> Figure:
    """Draw the reference images, and per run a row of maps of the difference to them; one column per sample.

    Of methods that ran at several N, only the largest is drawn, the fewest passes, and named. Differences are absolute,
    means over bands, on one scale for the whole figure. The PSNR to the reference, a mean over all samples, stands
    beside.

    Args:
        comparison: as `bench.compare` makes it.
        samples: how many columns; all when None.
        images: draw those of every run, too, above its differences.
    """
    interval = comparison["interval"].values
    kept = [0, *(i for i in range(1, len(interval)) if interval[i] in (0, interval.max()))]
    shown = comparison.isel(run=kept, sample=slice(samples))
    pictures = shown["image"].transpose("run", "sample", "y", "x", "band")
    if pictures.dtype.kind == "u":
        pictures = pictures / np.float32(255)
    difference = abs(pictures - pictures.isel(run=0, drop=True)).mean("band")  # (run, sample, y, x)
    strongest = float(np.ceil(10 * difference.quantile(0.999)) / 10)
    rows = [("image", 0), *((kind, i) for i in range(1, len(kept)) for kind in ("image", "difference")[not images :])]
    count, side = shown.sizes["sample"], 0.55 if not images else 0.9
    figure, axes = subplots(
        len(rows), count, figsize=(side * count, side * len(rows)), squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.08, "left": 0, "right": 1, "top": 1, "bottom": 0},
    )  # fmt: skip
    for axis, title in zip(axes[0], _titles(shown["label"].values.tolist()), strict=True):
        axis.set_title(fill(title, round(22 * side), max_lines=4), fontsize=8 if title.isdigit() else 5.5, pad=2)
    drawn = None
    for line, (kind, i) in zip(axes, rows, strict=True):
        for axis, image, off in zip(line, pictures[i], difference[i], strict=True):
            if kind == "image":
                draw_image(axis, image)
            else:
                bare(axis)
                drawn = axis.imshow(off, cmap="inferno", vmin=0, vmax=strongest)
        _name(line, shown.isel(run=i), kind, images)
    assert drawn is not None
    bar = figure.colorbar(drawn, cax=figure.add_axes((0.2, -0.1 / len(rows), 0.6, 0.05 / len(rows))),
                          orientation="horizontal")  # fmt: skip
    bar.ax.tick_params(labelsize=6, length=2)
    told = f"; N = {interval.max():g}, the fewest passes" if len(kept) < len(interval) else ""
    bar.set_label(f"absolute difference to the reference, of images in [0, 1]{told}", fontsize=7)
    bar.outline.set_visible(False)
    return figure


def _titles(labels: list[object]) -> list[str]:
    """Title every sample: by its label or prompt, without what else the calls were given if that tells none apart."""
    titles = [str(label) for label in labels]
    prompts = [title.partition(' {"')[0] for title in titles]
    return prompts if len(set(prompts)) == len(set(titles)) else titles


def _name(line: list[Axes], run: xr.Dataset, kind: str, images: bool) -> None:
    name, passes = str(run["method"].item()), float(run["full_passes"].mean())
    if kind == "image":
        name += f"\n{passes:g} passes" if images or name == "reference" else ""
    line[0].set_ylabel("difference" if images and kind == "difference" else name, rotation=0, ha="right", va="center",
                       fontsize=8)  # fmt: skip
    if kind == "difference":
        told = f"{float(run['psnr'].mean()):.1f} dB"
        line[-1].text(1.1, 0.5, told, transform=line[-1].transAxes, va="center", fontsize=8)
