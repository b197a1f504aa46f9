"""Every fixed predictor for all tokens and steps, with TAP's line across."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import ORDER_COLOURS, draw_interval, draw_level, look_of, style, subplots

MARKERS = ("v", "^", "D", "s")


@style()
def plot_fixed_predictors(
    fixed: xr.DataArray, levels: Mapping[str, xr.DataArray], *, label: str, images: int
) -> Figure:
    """One line per order over the shift of its horizon, 95 % intervals over images.

    Args:
        fixed: (predictor, bound) with the coordinates `order` and `shift`; order 0, which has no horizon, once.
        levels: methods ("tap", "oracle", ...) -> (bound).
        label: of the vertical axis, with its unit.
        images: behind the intervals.
    """
    figure, axis = subplots(figsize=(4.6, 3.4), constrained_layout=True)
    for order in sorted(set(fixed["order"].values.tolist())):
        own = fixed.isel(predictor=fixed["order"].values == order)
        colour, marker, name = ORDER_COLOURS[order][0], MARKERS[order], f"order {order}"
        if order == 0:
            draw_level(axis, own.isel(predictor=0), color=colour, linestyle="--", label=name)
        else:
            own = own.assign_coords(predictor=own["shift"].values).sortby("predictor")
            draw_interval(axis, own, "predictor", color=colour, marker=marker, markersize=4, label=name)
    for method, bounds in levels.items():
        look = look_of(method)
        draw_level(axis, bounds, color=look.colour, linestyle=look.line, linewidth=look.width,
                   label=look.label.removesuffix(" (cost of TAP)"))  # fmt: skip
    axis.set_xticks(sorted(set(fixed["shift"].values.tolist())))
    axis.set_xlabel("shift s of the horizon k - s (steps)")
    axis.set_ylabel(label)
    axis.set_title(f"one predictor for all tokens and steps\n(95 % interval over {images} images)")
    axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
