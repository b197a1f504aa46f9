"""Where the probe agrees with the truth: by its depth, and by the distance from the last full step."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, GREEN, ORANGE, PURPLE, draw_interval, draw_level, style, subplots

CONTROLS = {
    "shuffled": ("first block, losses shuffled over tokens", PURPLE),
    "blind": ("image-blind probe", ORANGE),
    "table": ("table of other images, no probe", GREEN),
}


@style()
def plot_correlation(table: xr.Dataset) -> Figure:
    """Rank correlation of proxy loss and true error over predictors, within a token; 95 % intervals over images.

    Args:
        table: from `rank_by_depth`: `spearman` (depth, bound), `of_control` (control, bound), `at_distance` (distance,
            ranker), attribute `images`.
    """
    figure, (left, right) = subplots(1, 2, figsize=(7.2, 3.0), constrained_layout=True, sharey=True)
    look = {"color": BLUE, "marker": "o", "markersize": 4}
    draw_interval(left, table["spearman"], "depth", label="TAP's probe", **look)
    for name in table["control"].values:
        label, colour = CONTROLS[str(name)]
        draw_level(left, table["of_control"].sel(control=name), color=colour, linestyle="--", label=label)
    left.set_xticks(table["depth"].values)
    left.set_xlabel("depth of the probe (blocks run at a skip step)")
    left.set_ylabel("Spearman over predictors")
    left.legend(frameon=False, fontsize=7, loc="lower right")
    for name in table["ranker"].values:
        own = str(name).startswith("tap ")
        colours = look if own else {**look, "color": CONTROLS[str(name).split()[0]][1]}
        draw_interval(right, table["at_distance"].sel(ranker=name), "distance", **colours)
    right.set_xticks(table["distance"].values)
    right.set_xlabel("distance k to the last anchor (steps)")
    for axis in (left, right):
        axis.axhline(0, color="0.6", linewidth=0.8)
        axis.set_ylim(-0.2, 1.04)  # markers at 1 are whole
    figure.suptitle(f"rank correlation within a token (95 % interval over {table.attrs['images']} images)", fontsize=9)
    return figure
