"""Quality against cost."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from tapstudy.plots.style import bar_lengths, look_of, style, subplots

COSTS = {"flops": ("FLOPs of one image", "FLOP"), "seconds": ("wall time of one image, this machine", "s")}
QUALITIES = {"psnr": "PSNR to the reference (dB)", "accuracy": "label accuracy (1)"}


@style()
def plot_frontier(table: xr.Dataset) -> Figure:
    """One line per method, one point per interval N; 95 % intervals over images.

    A row per cost that the table has (FLOPs, wall time), a column for PSNR and one for label accuracy, where the
    reference is a line across.

    Args:
        table: from `run_tables.frontier`.
    """
    costs = [name for name in COSTS if name in table]
    figure, axes = subplots(len(costs), 2, figsize=(9.4, 3.5 * len(costs)), squeeze=False, constrained_layout=True)
    for row, cost in zip(axes, costs, strict=True):
        for axis, quality in zip(row, QUALITIES, strict=True):
            _panel(axis, table, cost, quality)
    handles, labels = axes[0, 1].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")
    figure.suptitle(f"95 % interval over {table.attrs['images']} images, the same for all methods", fontsize=9)
    return figure


def _panel(axis: Axes, table: xr.Dataset, cost: str, quality: str) -> None:
    methods = list(dict.fromkeys(table["method"].values.tolist()))
    for method in methods:
        own = table.isel(run=table["method"].values == method).sortby(cost)
        look = look_of(method)
        mean = own[quality].sel(bound="mean").values
        if method == "reference":
            if quality == "accuracy":
                axis.axhline(mean[0], color=look.colour, linestyle=look.line, linewidth=0.9, label=look.label)
            continue
        axis.errorbar(
            own[cost].values, mean, yerr=bar_lengths(own[quality]), label=look.label, color=look.colour,
            marker=look.marker, linestyle=look.line, linewidth=look.width, markersize=5, capsize=1.5, elinewidth=0.6,
            zorder=3 if method == "tap" else 2,
        )  # fmt: skip
        if method == "tap" and quality == "psnr":
            for x, y, interval in zip(own[cost].values, mean, own["interval"].values, strict=True):
                axis.annotate(f"N = {interval}", (x, y), xytext=(3, -11), textcoords="offset points", fontsize=7)
    text, unit = COSTS[cost]
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(unit=unit))
    axis.set_xlabel(text)
    axis.set_ylabel(QUALITIES[quality])
    if quality == "accuracy":
        axis.set_ylim(top=1.02)
