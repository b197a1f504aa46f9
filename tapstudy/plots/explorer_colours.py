"""Colours of the map explorer, for the page and the notebook view alike."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from tapstudy.plots.style import GREEN, PURPLE, predictor_colour

CHOSEN, BEST = PURPLE, GREEN  # of lines and rings that mark the choice and the oracle
NOTHING = "#f2f2f2"  # a value of exactly 0


def category_colours(data: xr.Dataset) -> dict[str, dict[float, str]]:
    """For each layer of categories, the colour of every value.

    Args:
        data: with the coordinates `order` and `shift` on predictor.
    """
    orders, shifts = data["order"].values, data["shift"].values
    longest = float(shifts.max())
    of_shift = np.unique(shifts)
    places = np.linspace(0.05, 0.95, len(of_shift))
    return {
        "choice": {
            p: to_hex(predictor_colour(int(m), float(s), longest))
            for p, (m, s) in enumerate(zip(orders, shifts, strict=True))
        },
        "chosen_order": {int(m): to_hex(predictor_colour(int(m), 0.25 * longest, longest)) for m in np.unique(orders)},
        "chosen_shift": {float(s): to_hex(mpl.colormaps["cividis"](x)) for s, x in zip(of_shift, places, strict=True)},
    }


def scale_colours(count: int = 64) -> list[str]:
    """The colour scale of errors, regret and norms, from low to high."""
    return [to_hex(mpl.colormaps["viridis"](x)) for x in np.linspace(0, 1, count)]


def horizon_label(shift: float) -> str:
    """`k`, or `k - 2`: how far the predictor looks, at distance k."""
    return f"k \N{MINUS SIGN} {shift:g}" if shift else "k"
