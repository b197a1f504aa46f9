"""What choosing by the probe costs, beside the best choice and beside chance."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import PURPLE, VERMILION, draw_interval, style, subplots

PANELS = {
    "regret": "true error of the choice\nminus that of the oracle (relative)",
    "normalised_regret": "regret over that of chance",
    "top1": "share of tokens\nwhose choice is the best",
}


@style()
def plot_regret(own: xr.Dataset, shuffled: xr.Dataset, *, images: int) -> Figure:
    """Regret, the same over that of a random choice, and how often the choice is the best one, by distance.

    Args:
        own: `regret`, `normalised_regret` and `top1` (distance, bound), choices by the token's own probe.
        shuffled: the same by that of another token of the step.
        images: behind the intervals.
    """
    figure, axes = subplots(1, 3, figsize=(9.4, 3.0), constrained_layout=True)
    for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
        look = {"markersize": 4, "linewidth": 1.0}
        draw_interval(axis, own[name], "distance", color=VERMILION, marker="o", label="own probe", **look)
        draw_interval(
            axis, shuffled[name], "distance", color=PURPLE, marker="d", linestyle="--",
            label="probe of another token", **look,
        )  # fmt: skip
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set_xlabel("distance k to the last anchor (steps)")
        axis.set_ylabel(label)
        axis.set_xticks(own["distance"].values)
    axes[1].axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    axes[1].annotate(
        "random choice", (0.99, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7
    )
    axes[1].annotate("oracle", (0.99, 0), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7)
    axes[2].set_ylim(0, 1)
    axes[0].legend(frameon=False, fontsize=7)
    figure.suptitle(f"exact trajectories, 95 % interval over {images} images", fontsize=9)
    return figure
