"""Quality against cost."""

from __future__ import annotations

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import EngFormatter, MaxNLocator

from tapstudy.plots.style import bar_lengths, look_of, style, subplots

COSTS = {"flops": ("FLOPs of one image", "FLOP"), "seconds": ("wall time of one image: median, least, most", "s")}
QUALITIES = {"psnr": "PSNR to the reference (dB)", "accuracy": "label accuracy (1)"}


@style()
def plot_frontier(table: xr.Dataset) -> Figure:
    """Draw one line per method, one point per interval N; 95 % intervals over images; of times, least and most.

    A column per cost that the table has (FLOPs, wall time), and a row for PSNR. A second one is for label accuracy,
    where some method's interval lies below the reference, which is a line across; else the title tells the least.

    Args:
        table: from `run_tables.frontier`.
    """
    costs, qualities = [name for name in COSTS if name in table], ["psnr"]
    accuracy = table["accuracy"]
    loss = bool((accuracy.sel(bound="high") < float(accuracy.sel(bound="mean").max())).any())
    if loss:
        qualities.append("accuracy")
    figure, axes = subplots(
        len(qualities), len(costs), figsize=(2.4 + 4.0 * len(costs), 3.7 * len(qualities)), squeeze=False,
        constrained_layout=True,
    )  # fmt: skip
    for row, quality in zip(axes, qualities, strict=True):
        for axis, cost in zip(row, costs, strict=True):
            _panel(axis, table, cost, quality)
    handles, labels = axes[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=8, loc="outside right center")
    title = f"95 % interval over {table.attrs['images']} images, the same for all methods"
    if not loss:
        least = float(accuracy.sel(bound="mean").min())
        title += "; label accuracy 100 % for all" if least == 1 else f"; label accuracy {least:.0%} or more, for all"
    figure.suptitle(title, fontsize=9)
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
        spread = bar_lengths(own[f"{cost}_range"]) if f"{cost}_range" in own else None
        axis.errorbar(
            own[cost].values, mean, xerr=spread, yerr=bar_lengths(own[quality]), label=look.label, color=look.colour,
            marker=look.marker, linestyle=look.line, linewidth=look.width, markersize=5, capsize=1.5, elinewidth=0.6,
            zorder=3 if method == "tap" else 2,
        )  # fmt: skip
        if method == "tap" and quality == "psnr":
            for x, y, interval in zip(own[cost].values, mean, own["interval"].values, strict=True):
                label = axis.annotate(f"N = {interval}", (x, y), xytext=(4, -11), textcoords="offset points")
                label.set(fontsize=7, color=look.colour, zorder=4)
                label.set_path_effects([withStroke(linewidth=2, foreground="white")])
    text, unit = COSTS[cost]
    shown = table[cost].values[table["method"].values != "reference"]
    axis.xaxis.set_major_locator(
        MaxNLocator(4 if shown.max() > 1.1 * shown.min() else 2)
    )  # late digits make long numbers
    axis.xaxis.set_major_formatter(EngFormatter(unit=unit))
    axis.set_xlabel(text)
    axis.set_ylabel(QUALITIES[quality])
    axis.margins(y=0.08)
    if quality == "accuracy":
        axis.set_ylim(top=1.02)
