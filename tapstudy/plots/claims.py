"""The verdicts on all claims at a glance."""

from __future__ import annotations

import textwrap

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, VERMILION, bar_lengths, style, subplots

VERDICTS = {"holds": (BLUE, "o"), "fails": (VERMILION, "X"), "undecided": ("0.5", "D")}
WIDTH = 88


@style()
def plot_claims(verdicts: xr.Dataset) -> Figure:
    """Draw one row per claim: the inequality that decides it, with its 95 % interval; a panel per unit.

    Drawn is how far the value lies beyond its threshold, on the claimed side to the right. Where an interval does not
    touch 0 and yet nothing is decided, Holm's correction for all claims is the reason, and its p-value stands beside.

    Args:
        verdicts: from `verdict_table`: `margin` (claim, bound), `verdict`, `statement`, `decided_by`, `unit`,
            `threshold`, `p_value` (claim).
    """
    units = verdicts["unit"].values.astype(str)
    panels = sorted(set(units), reverse=True)  # dB, then pure numbers
    counts = [int((units == unit).sum()) for unit in panels]
    figure, axes = subplots(
        len(panels), 1, figsize=(9.4, 0.9 + 0.27 * sum(counts)), squeeze=False, constrained_layout=True,
        gridspec_kw={"height_ratios": counts},
    )  # fmt: skip
    for axis, unit in zip(axes[:, 0], panels, strict=True):
        _panel(axis, verdicts.isel(claim=units == unit), unit)
    for verdict, (colour, marker) in VERDICTS.items():
        axes[0, 0].plot([], [], color=colour, marker=marker, linestyle="none", label=verdict)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, ncols=3, fontsize=8, loc="outside upper right")
    return figure


def _panel(axis: Axes, rows: xr.Dataset, unit: str) -> None:
    for y, claim in enumerate(rows["claim"].values):
        row = rows.sel(claim=claim)
        mean, low, high = row["margin"].values
        verdict = str(row["verdict"].item())
        colour, marker = VERDICTS[verdict]
        bars = [[length] for length in bar_lengths(row["margin"])]
        axis.errorbar(mean, y, xerr=bars, color=colour, marker=marker, markersize=4.5, capsize=2, elinewidth=1)
        if verdict == "undecided" and (low > 0 or high < 0):
            edge, side = (high, 1) if low > 0 else (low, -1)  # away from 0
            axis.annotate(f"Holm: p = {float(row['p_value']):.2g}", (edge, y), xytext=(5 * side, 0), color="0.4",
                          fontsize=6.5, textcoords="offset points", va="center", ha="left" if side > 0 else "right",
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
    axis.set_yticks(np.arange(rows.sizes["claim"]), [_label(rows.isel(claim=i)) for i in range(rows.sizes["claim"])],
                    fontsize=6)  # fmt: skip
    axis.set_ylim(rows.sizes["claim"] - 0.4, -0.6)
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.margins(x=0.16)  # room for the texts
    axis.grid(axis="x", linewidth=0.3)
    axis.set_xlabel(
        f"beyond the threshold, claimed side to the right ({unit or 'correlations, shares, relative changes'})"
    )


def _label(row: xr.Dataset) -> str:
    statement = textwrap.shorten(f"{row['claim'].item()}  {row['statement'].item()}", WIDTH, placeholder=" ...")
    threshold = float(row["threshold"])
    return f"{statement}\n{row['decided_by'].item()}; threshold {threshold:g}".rstrip()
