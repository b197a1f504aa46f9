"""Which orders and horizons the tokens choose, step by step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tapstudy.plots.bands import shade_full_steps
from tapstudy.plots.style import ORDER_COLOURS, predictor_colour, style, subplots


def plot_choice_shares(shares: xr.Dataset, *, full_steps: list[int]) -> Figure:
    """Stacked shares of the tokens at every skip step.

    Args:
        shares: `order_share` (step, chosen_order) and `shift_share` (step, chosen_shift), means over images; NaN at
            full steps, and of shifts where every token chooses order 0.
        full_steps: drawn grey.
    """
    shifts = shares["chosen_shift"].values
    longest = float(np.max(shifts))
    with style():
        figure, (top, bottom) = subplots(2, 1, figsize=(7.2, 4.2), sharex=True, constrained_layout=True)
        orders = {f"order {m}": ORDER_COLOURS[int(m)][0] for m in shares["chosen_order"].values}
        _stack(top, shares["order_share"], "chosen_order", orders)
        top.set_ylabel("share of tokens")
        horizons = {f"k - {s:g}" if s else "k": predictor_colour(1, float(s), longest) for s in shifts}
        _stack(bottom, shares["shift_share"], "chosen_shift", horizons)
        bottom.set_ylabel("share of tokens\nof order 1 or 2")
        bottom.set_xlabel("step (noise first; grey: full steps)")
        for axis, title in ((top, "order"), (bottom, "horizon")):
            shade_full_steps(axis, full_steps)
            axis.set_ylim(0, 1)
            axis.set_xlim(shares["step"].values[0] - 0.5, shares["step"].values[-1] + 0.5)
            axis.legend(title=title, frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _stack(axis: Axes, shares: xr.DataArray, dim: str, colours: Mapping[str, str | tuple[float, ...]]) -> None:
    foot = np.zeros(shares.sizes["step"])
    for value, (name, colour) in zip(shares[dim].values, colours.items(), strict=True):
        height = np.nan_to_num(shares.sel({dim: value}).values)  # nothing at full steps
        axis.bar(shares["step"].values, height, bottom=foot, width=1.0, color=colour, edgecolor="white", linewidth=0.2,
                 label=name)  # fmt: skip
        foot = foot + height  # where the next bar starts
