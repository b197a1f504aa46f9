"""True error of TAP with other orders and horizons, at several intervals."""

from __future__ import annotations

import seaborn as sns
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, plain_log_scale, style, subplots

COLOURS = {"0": "0.5", "1": BLUE, "2": SKY, "0,1": GREEN, "1,2": PURPLE, "0,2": ORANGE, "0,1,2": VERMILION}
MARKERS = {"0": "v", "1": "^", "2": "D", "0,1": "P", "1,2": "d", "0,2": "h", "0,1,2": "o"}


@style()
def plot_ablation_errors(table: xr.Dataset) -> Figure:
    """Draw true error of the choices over N, a line per set of orders, a panel per set of horizons; and the oracle's.

    Lines are means over images, in bands of their 95 % bootstrap interval where there are several.

    Args:
        table: from `ablate`: `true_error`, `oracle_true_error` (sample, setting) with the coordinates `orders`,
            `shifts` and `interval`.
    """
    shown = table[["true_error", "oracle_true_error"]].reset_coords(["orders", "shifts", "interval"])
    rows = shown.to_dataframe().reset_index()
    panels = list(dict.fromkeys(rows["shifts"]))
    figure, axes = subplots(
        1, len(panels), figsize=(4.2 * len(panels) + 1.2, 3.2), sharey=True, squeeze=False, constrained_layout=True
    )
    several = table.sizes.get("sample", 1) > 1
    look = {"x": "interval", "estimator": "mean", "errorbar": ("ci", 95) if several else None, "seed": 0}
    for axis, shifts in zip(axes[0], panels, strict=True):
        here = rows[rows["shifts"] == shifts]
        for orders, own in here.groupby("orders", sort=False):
            own_look = {"color": COLOURS.get(str(orders), "0.7"), "marker": MARKERS.get(str(orders), ".")}
            sns.lineplot(own, y="true_error", markersize=5, markeredgewidth=0, label=f"orders {orders}", ax=axis,
                         **own_look, **look)  # fmt: skip
        last = f"oracle of orders {orders}"
        sns.lineplot(own, y="oracle_true_error", color="0.3", linestyle=":", label=last, ax=axis, **look)
        axis.get_legend().remove()
        axis.set_xticks(sorted(set(here["interval"])))
        axis.set(xlabel="interval N of full steps (steps)", ylabel="true error of the choice (relative)")
        axis.set_title("horizon k only" if shifts == "0" else f"horizons k - s, s in {{{shifts}}}")
    plain_log_scale(axes[0, 0].yaxis)
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
