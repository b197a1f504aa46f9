"""Which orders and horizons the tokens choose, step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import ORDER_COLOURS, draw_stack, predictor_colour, shade_full_steps, style, subplots


@style()
def plot_choice_shares(shares: xr.Dataset, *, full_steps: list[int]) -> Figure:
    """Stacked shares of the tokens at every skip step.

    Args:
        shares: `order_share` (step, chosen_order) and `shift_share` (step, chosen_shift), means over images; NaN at
            full steps, and of shifts where every token chooses order 0.
        full_steps: drawn grey.
    """
    shifts = shares["chosen_shift"].values
    longest = float(np.max(shifts))
    figure, (top, bottom) = subplots(2, 1, figsize=(7.2, 4.2), sharex=True, constrained_layout=True)
    orders = {f"order {m}": ORDER_COLOURS[int(m)][0] for m in shares["chosen_order"].values}
    look: dict[str, Any] = {"edgecolor": "white", "linewidth": 0.2}
    legend = {"frameon": False, "fontsize": 8, "loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    order_share = shares["order_share"].transpose("step", "chosen_order")
    draw_stack(top, order_share, orders, legend={"title": "order", **legend}, **look)
    top.set_ylabel("share of tokens")
    horizons = {f"k - {s:g}" if s else "k": predictor_colour(1, float(s), longest) for s in shifts}
    shift_share = shares["shift_share"].transpose("step", "chosen_shift")
    draw_stack(bottom, shift_share, horizons, legend={"title": "horizon", **legend}, **look)
    bottom.set_ylabel("share of tokens\nof order 1 or 2")
    bottom.set_xlabel("step (noise first; grey: full steps)")
    for axis in (top, bottom):
        shade_full_steps(axis, full_steps)
        axis.set_ylim(0, 1)
        axis.set_xlim(shares["step"].values[0] - 0.5, shares["step"].values[-1] + 0.5)
    return figure
