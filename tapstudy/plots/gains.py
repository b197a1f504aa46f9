"""Paired differences of runs to a baseline, group by group."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, SKY, bar_lengths, style, subplots


@style()
def plot_gains(groups: Mapping[str, xr.Dataset], *, baseline: str, columns: int = 1) -> Figure:
    """Draw a row per run: PSNR minus the baseline's on the same images: every image, their mean, its 95 % interval.

    Args:
        groups: title -> table from `run_tables.gains`: `gain` (run, bound), `gain_of_image` (run, sample) and
            `images` (run).
        baseline: what the differences are to, for the axis label.
        columns: of panels.
    """
    counts = [table.sizes["run"] for table in groups.values()]
    most = [max(counts[i : i + columns]) for i in range(0, len(counts), columns)]  # of a row of panels
    figure, axes = subplots(
        len(most), columns, figsize=(2.2 + 3.8 * columns, 0.9 + 0.24 * sum(most) + 0.28 * len(most)), squeeze=False,
        sharex=True, gridspec_kw={"height_ratios": [n + 0.6 for n in most]}, constrained_layout=True,
    )  # fmt: skip
    for axis in axes.flat[len(groups) :]:
        axis.set_visible(False)
    for axis, (title, table) in zip(axes.flat, groups.items(), strict=False):
        mean = table["gain"].sel(bound="mean").values
        place = np.arange(table.sizes["run"])
        of_image = table["gain_of_image"].to_dataframe().reset_index()
        sns.stripplot(of_image, x="gain_of_image", y="run", jitter=False, marker="|", linewidth=0.8, size=7,
                      color=SKY, alpha=0.6, ax=axis, zorder=1)  # fmt: skip
        axis.errorbar(mean, place, xerr=bar_lengths(table["gain"]), color=BLUE, marker="o", markersize=4, capsize=2,
                      linestyle="none")  # fmt: skip
        axis.axvline(0, color="0.5", linewidth=0.8)
        axis.set_ylim(place[-1] + 0.6, -0.6)
        axis.set_yticks(place, [str(name) for name in table["run"].values], fontsize=8)
        axis.set(xlabel="", ylabel="")
        axis.set_title(f"{title} ({_images(table)} images)", loc="left", fontsize=8, pad=3)
    figure.supxlabel(f"PSNR minus that of {baseline} (dB; ticks: images; mean with 95 % interval)", fontsize=9)
    return figure


def _images(table: xr.Dataset) -> str:
    counts = sorted(set(table["images"].values.tolist()))
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
