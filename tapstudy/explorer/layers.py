"""The layers of the map explorer and their colours."""

from __future__ import annotations

from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.colors import to_hex

from tapstudy.plots.style import GREEN, PURPLE, predictor_colour

CHOSEN, BEST = PURPLE, GREEN  # of lines and rings that mark the choice and the oracle
NOTHING = "#f2f2f2"  # a value of exactly 0


class Layer(NamedTuple):
    """Hold one choice of the layer menu.

    Attributes:
        name: of the variable in the prepared dataset.
        title: in the menu and on the legend.
        kind: "category" (one colour per predictor, order or shift), "log" or "linear" (a colour scale).
    """

    name: str
    title: str
    kind: str


LAYERS = (
    Layer("choice", "chosen predictor", "category"),
    Layer("chosen_order", "chosen order", "category"),
    Layer("chosen_shift", "chosen shift", "category"),
    Layer("chosen_proxy_loss", "proxy loss of the choice", "log"),
    Layer("chosen_error", "true error of the choice", "log"),
    Layer("regret", "regret of the choice", "log"),
    Layer("probe_norm", "norm of the probe", "linear"),
)


def layers_of(data: xr.Dataset) -> list[Layer]:
    """Return those that the prepared dataset holds."""
    return [layer for layer in LAYERS if layer.name in data]


def category_colours(data: xr.Dataset) -> dict[str, dict[float, str]]:
    """Return, for each layer of categories, the colour of every value.

    Args:
        data: with the coordinates `order` and `shift` on predictor.
    """
    orders, shifts = data["order"].values.tolist(), data["shift"].values.tolist()
    longest = max(shifts)
    of_shift = sorted(set(shifts))
    places = np.linspace(0.05, 0.95, len(of_shift))
    return {
        "choice": {
            p: to_hex(predictor_colour(m, s, longest)) for p, (m, s) in enumerate(zip(orders, shifts, strict=True))
        },
        "chosen_order": {m: to_hex(predictor_colour(m, 0.25 * longest, longest)) for m in sorted(set(orders))},
        "chosen_shift": {s: to_hex(mpl.colormaps["viridis"](x)) for s, x in zip(of_shift, places, strict=True)},
    }


def scale_colours(count: int = 64) -> list[str]:
    """Return the colour scale of errors, regret and norms, from low to high."""
    return [to_hex(mpl.colormaps["viridis"](x)) for x in np.linspace(0, 1, count)]


def horizon_label(shift: float) -> str:
    """Return `k`, or `k - 2`: how far the predictor looks, at distance k."""
    return f"k \N{MINUS SIGN} {shift:g}" if shift else "k"
