"""Deeper probes against more full steps, at equal FLOPs."""

from __future__ import annotations

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from tapstudy.plots.style import BLUE, VERMILION, bar_lengths, style, subplots


@style()
def plot_depths(first: xr.Dataset, deeper: xr.Dataset) -> Figure:
    """PSNR over FLOPs: the first block's probe at several N as a line, deeper probes at one N as points.

    A deeper probe pays off if its point lies above the line.

    Args:
        first, deeper: `psnr` (run, bound), `flops` (run), from `cost_and_quality`, on the same images; runs "tap N=6"
            and "tap N=8 depth=2".
    """
    figure, axis = subplots(figsize=(4.8, 3.4), constrained_layout=True)
    first = first.sortby("flops")
    _draw(axis, first, color=VERMILION, marker="o", label="probe of the first block")
    _draw(axis, deeper, color=BLUE, marker="s", linestyle="none", label="deeper probe, N = 8")
    for table, part, where in ((first, "N=", (0, -10)), (deeper, "depth=", (5, -3))):
        for name in table["run"].values:
            run = table.sel(run=name)
            text = part.replace("=", " = ") + str(name).split(part)[1].split()[0]
            axis.annotate(text, (float(run["flops"]), float(run["psnr"].sel(bound="mean"))), xytext=where,
                          textcoords="offset points", fontsize=7)  # fmt: skip
    axis.xaxis.set_major_locator(MaxNLocator(4))
    axis.xaxis.set_major_formatter(EngFormatter(unit="FLOP"))
    axis.set_xlabel("cost of one image")
    axis.set_ylabel("PSNR to the reference (dB)")
    axis.set_title(f"depth of the probe at equal cost\n(95 % interval over {first.attrs['images']} images)")
    axis.legend(frameon=False, fontsize=7)
    return figure


def _draw(axis: Axes, table: xr.Dataset, **look: Any) -> None:
    axis.errorbar(
        table["flops"].values, table["psnr"].sel(bound="mean").values, yerr=bar_lengths(table["psnr"]), markersize=4,
        capsize=2, linewidth=1.0, **look,
    )  # fmt: skip
