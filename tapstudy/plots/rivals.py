"""All methods at one number of full passes."""

from __future__ import annotations

import numpy as np
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
    """One row per method and schedule, the best first: PSNR with its 95 % interval over images, and the speed-up.

    Args:
        table: from `bench.frontier.comparison`, rows of one number of passes with values, the best first, and the
            reference: `psnr_interval` (cell, bound) in dB, `time_ratio` (cell), coordinates `method`, `schedule`,
            `kind`, `passes`; attribute `images`.
        steps: of the reference.
    """
    place = np.arange(table.sizes["cell"])
    kinds = table["kind"].values.astype(str)
    names = [
        f"{method}" if schedule == "own" else f"{method}, {schedule}"
        for method, schedule in zip(table["method"].values, table["schedule"].values, strict=True)
    ]
    figure, (quality, speed) = subplots(
        1, 2, figsize=(8.6, 1.2 + 0.165 * len(place)), sharey=True, width_ratios=[3, 2], constrained_layout=True
    )
    for kind, (label, colour, marker) in KINDS.items():
        own = np.flatnonzero(kinds == kind)
        if not len(own):
            continue
        part = table.isel(cell=own)
        mean = part["psnr_interval"].sel(bound="mean").values
        quality.errorbar(
            mean, place[own], xerr=bar_lengths(part["psnr_interval"]), color=colour, marker=marker, markersize=4,
            linestyle="none", elinewidth=0.7, label=label,
        )  # fmt: skip
        speed.plot(part["time_ratio"].values, place[own], color=colour, marker=marker, markersize=4, linestyle="none")
    passes = int(table["passes"].values[0])
    speed.axvline(steps / passes, color="0.5", linestyle=":", linewidth=0.9)
    speed.set_xlim(left=0)
    quality.set_yticks(place, names, fontsize=6.5)
    quality.set_ylim(place[-1] + 0.7, -0.7)
    quality.set_xlabel("PSNR to the reference (dB)")
    speed.set_xlabel(f"times faster, this machine\n(dotted: {steps} steps / {passes} passes)")
    for axis in (quality, speed):
        axis.grid(axis="y", linewidth=0.3)
    figure.legend(frameon=False, fontsize=7.5, loc="outside lower center", ncols=3)
    figure.suptitle(
        f"{passes} full passes of {steps}; 95 % interval over {table.attrs['images']} images, the same for all",
        fontsize=9,
    )
    return figure
