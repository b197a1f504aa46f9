"""All methods at one number of full passes."""

from __future__ import annotations

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, VERMILION, bar_lengths, style, subplots

# kind of method -> what to call it, colour, marker
KINDS = {
    "control": ("control", BLACK, "s"),
    "fixed": ("one predictor for all tokens", GREEN, "^"),
    "cache": ("published cache, as a policy", BLUE, "D"),
    "peer": ("published cache, its own package", PURPLE, "X"),
    "tap": ("TAP", VERMILION, "o"),
    "beyond": ("beyond the paper", ORANGE, "h"),
}


@style()
def plot_rivals(table: xr.Dataset, *, steps: int) -> Figure:
    """Draw one row per method and schedule, grouped by kind, the best first: PSNR with 95 % interval, and cost.

    Args:
        table: from `bench.frontier.comparison`, rows of one number of passes with values, the best first, and the
            reference: `psnr_interval` (cell, bound) in dB, `time_ratio` and `flops_ratio` (cell), coordinates `method`,
            `schedule`, `kind`, `passes`, `as_published`; attribute `images`.
        steps: of the reference.
    """
    kinds = [kind for kind in KINDS if kind in table["kind"].values]
    table = xr.concat([table.isel(cell=table["kind"].values == kind) for kind in kinds], "cell")
    starts = np.flatnonzero(np.append(True, table["kind"].values[1:] != table["kind"].values[:-1]))
    group = np.searchsorted(starts, np.arange(table.sizes["cell"]), side="right")
    place = np.arange(table.sizes["cell"]) + 1.1 * group  # room for the title of every group
    names = [
        f"{method}" if schedule == "own" else f"{method}, {schedule}"
        for method, schedule in zip(table["method"].values, table["schedule"].values, strict=True)
    ]
    figure, (quality, speed) = subplots(
        1, 2, figsize=(7.6, 1.0 + 0.17 * place[-1]), sharey=True, width_ratios=[3, 2], constrained_layout=True
    )
    for kind, start in zip(kinds, starts, strict=True):
        label, colour, marker = KINDS[kind]
        rows = table["kind"].values == kind
        part = table.isel(cell=rows)
        quality.errorbar(
            part["psnr_interval"].sel(bound="mean").values, place[rows], xerr=bar_lengths(part["psnr_interval"]),
            color=colour, marker=marker, markersize=4, linestyle="none", elinewidth=0.8,
        )  # fmt: skip
        sns.scatterplot(x=part["time_ratio"].values, y=place[rows], color=colour, marker=marker, s=22, ax=speed)
        speed.plot(part["flops_ratio"].values, place[rows], linestyle="none", marker=marker, markersize=5.5,
                   markerfacecolor="none", markeredgecolor=colour, markeredgewidth=0.8, zorder=3)  # fmt: skip
        quality.annotate(label, (0, place[start] - 1), xycoords=("axes fraction", "data"), xytext=(-4, 0), ha="right",
                         textcoords="offset points", va="center", color=colour, fontsize=7, weight="bold")  # fmt: skip
    passes = int(table["passes"].values[0])
    for mean in table["psnr_interval"].sel(bound="mean").values[table["as_published"].values]:
        quality.axvline(mean, color=VERMILION, linestyle=":", linewidth=0.9, zorder=0)
        quality.annotate("TAP as published", (mean, 1), xycoords=("data", "axes fraction"), xytext=(0, 2), fontsize=6.5,
                         textcoords="offset points", ha="center", color=VERMILION)  # fmt: skip
    speed.axvline(steps / passes, color="0.5", linestyle=":", linewidth=0.9)
    speed.set_xlim(left=0)
    quality.set_yticks(place, names, fontsize=6.5)
    quality.set_ylim(place[-1] + 0.7, -0.4)
    quality.set_xlabel("PSNR to the reference (dB)")
    speed.set_xlabel(f"times less time (filled), FLOPs (hollow)\ndotted: {steps} steps / {passes} passes")
    for axis in (quality, speed):
        axis.grid(axis="y", linewidth=0.3)
    title = f"Every method at the cost of {passes} full passes of {steps}, if it can; 95 % interval over images"
    figure.suptitle(title, fontsize=9)
    return figure
