"""The layers of the map: which variable each one shows, and how."""

from __future__ import annotations

from typing import NamedTuple

import xarray as xr


class Layer(NamedTuple):
    """One choice of the layer menu.

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
    """Those that the prepared dataset holds."""
    return [layer for layer in LAYERS if layer.name in data]
