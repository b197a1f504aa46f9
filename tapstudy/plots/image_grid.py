"""Images of every method side by side."""

from __future__ import annotations

from textwrap import fill

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import draw_image, style, subplots


@style()
def plot_image_grid(comparison: xr.Dataset, *, samples: int | None = None) -> Figure:
    """Draw one row per run, one column per sample; the PSNR to the reference stands beside each row.

    Args:
        comparison: as `bench.compare` makes it.
        samples: how many columns; all when None.
    """
    shown = comparison.isel(sample=slice(samples))
    runs, count = shown.sizes["run"], shown.sizes["sample"]
    figure, axes = subplots(
        runs, count, figsize=(2.0 + 0.42 * count, 0.44 * runs + 0.3), squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.08},
    )  # fmt: skip
    for axis, label in zip(axes[0], shown["label"].values, strict=True):
        size = 8 if shown["label"].dtype.kind == "i" else 4
        axis.set_title(fill(str(label), 9, max_lines=3), fontsize=size, pad=2)
    for i, line in enumerate(axes):
        run, name = comparison.isel(run=i), str(comparison["method"].values[i])
        for axis, image in zip(line, shown["image"].isel(run=i).transpose("sample", "y", "x", "band"), strict=True):
            draw_image(axis, image)
        if i:
            name = f"N = {int(run['interval'])}   {name}" if int(run["interval"]) else name
            told = f"{float(run['psnr'].mean()):.1f} dB"
            line[-1].text(1.15, 0.5, told, transform=line[-1].transAxes, va="center", fontsize=8)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
