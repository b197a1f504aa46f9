"""True error of TAP with other orders and horizons, at several intervals."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, plain_log_scale, style, subplots

COLOURS = {"0": "0.5", "1": BLUE, "2": SKY, "0,1": GREEN, "1,2": PURPLE, "0,2": ORANGE, "0,1,2": VERMILION}
MARKERS = {"0": "v", "1": "^", "2": "D", "0,1": "P", "1,2": "d", "0,2": "h", "0,1,2": "o"}


@style()
def plot_ablation_errors(table: xr.Dataset) -> Figure:
    """True error of the choices over N, a line per set of orders, a panel per set of horizons; and the oracle's.

    Args:
        table: from `ablate`: `true_error`, `oracle_true_error` (sample, setting) with the coordinates `orders`,
            `shifts` and `interval`; one image, or more whose first is drawn.
    """
    one = table.isel(sample=0) if "sample" in table.dims else table
    panels = list(dict.fromkeys(one["shifts"].values.tolist()))
    figure, axes = subplots(
        1, len(panels), figsize=(4.2 * len(panels) + 1.2, 3.2), sharey=True, squeeze=False, constrained_layout=True
    )
    for axis, shifts in zip(axes[0], panels, strict=True):
        here = one.isel(setting=one["shifts"].values == shifts)
        for orders in dict.fromkeys(here["orders"].values.tolist()):
            own = here.isel(setting=here["orders"].values == orders)
            axis.plot(own["interval"].values, own["true_error"].values, color=COLOURS.get(orders, "0.7"),
                      marker=MARKERS.get(orders, "."), markersize=4, label=f"orders {orders}")  # fmt: skip
        axis.plot(own["interval"].values, own["oracle_true_error"].values, color="0.3", linestyle=":",
                  label=f"oracle of orders {orders}")  # fmt: skip
        axis.set_xticks(own["interval"].values)
        axis.set_xlabel("interval N of full steps (steps)")
        axis.set_title("horizon k only" if shifts == "0" else f"horizons k - s, s in {{{shifts}}}")
    plain_log_scale(axes[0, 0].yaxis)
    axes[0, 0].set_ylabel("true error of the choice (relative)")
    axes[0, -1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
