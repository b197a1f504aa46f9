"""Images of every method side by side."""

from __future__ import annotations

from textwrap import fill

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import style, subplots


@style()
def plot_image_grid(comparison: xr.Dataset, *, samples: int | None = None) -> Figure:
    """One row per run, one column per sample; the PSNR to the reference stands beside each row.

    Args:
        comparison: as `bench.compare` makes it.
        samples: how many columns; all when None.
    """
    count = min(samples or comparison.sizes["sample"], comparison.sizes["sample"])
    runs, digits = comparison.sizes["run"], comparison["label"].dtype.kind == "i"
    figure, axes = subplots(
        runs, count, figsize=(2.0 + 0.42 * count, 0.44 * runs + 0.3), squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.08},
    )  # fmt: skip
    for i in range(runs):
        run = comparison.isel(run=i)
        for j in range(count):
            axis = axes[i, j]
            axis.imshow(
                run["image"].isel(sample=j).transpose("y", "x", "band").squeeze(), cmap="gray_r", vmin=0, vmax=1
            )
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set_visible(False)
            if i == 0:
                axis.set_title(
                    fill(str(run["label"].isel(sample=j).item()), 9, max_lines=3),
                    fontsize=8 if digits else 4,
                    pad=2,
                )
        name = str(run["method"].item())
        first = axes[i, 0]
        if i:
            name = f"N = {int(run['interval'])}   {name}"
            last = axes[i, -1]
            last.text(
                1.15, 0.5, f"{float(run['psnr'].mean()):.1f} dB", transform=last.transAxes, va="center", fontsize=8
            )
        first.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
    return figure
