"""How the tokens of an image differ in their dynamics."""

from __future__ import annotations

import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tapstudy.plots.style import (
    BLACK,
    BLUE,
    ORANGE,
    ORDER_COLOURS,
    VERMILION,
    draw_stack,
    plain_log_scale,
    style,
    subplots,
)

CLASS_COLOURS = {"background": "0.55", "edge": VERMILION, "interior": BLUE}
WIDTH = 0.8  # of the bars of a source
SOURCES = {
    "sample": "image",
    "step": "step",
    "position": "place in\nthe image",
    "token": "token of\nthe image",
    "residual": "rest",
}


@style()
def plot_heterogeneity(speed: xr.DataArray, orders: xr.DataArray, shares: dict[str, xr.Dataset]) -> Figure:
    """Speed over the steps and effective order of every token class, and whose the variance is.

    Args:
        speed: (token_class, quantile, step), from `by_class` of the relative velocity; its quartiles are drawn.
        orders: (token_class, value), from `shares_by_class` of the effective order.
        shares: quantity -> table from `variance_shares` over `source`, of one context.
    """
    figure, (left, middle, right) = subplots(
        1, 3, figsize=(9.6, 3.1), constrained_layout=True, gridspec_kw={"width_ratios": (1.25, 1, 1.25)}
    )
    _speed(left, speed)
    _orders(middle, orders)
    _shares(right, shares)
    return figure


def _speed(axis: Axes, speed: xr.DataArray) -> None:
    for name in speed["token_class"].values:
        low, median, high = (speed.sel(token_class=name, quantile=q).values for q in (0.25, 0.5, 0.75))
        axis.plot(speed["step"].values, median, color=CLASS_COLOURS[str(name)], label=str(name))
        axis.fill_between(speed["step"].values, low, high, color=CLASS_COLOURS[str(name)], alpha=0.2, linewidth=0)
    plain_log_scale(axis.yaxis)
    axis.set_xlabel("step (noise first)")
    axis.set_ylabel("relative speed of the residual (1 / step)")
    axis.set_title("speed: median and quartiles over tokens", pad=20)
    axis.legend(frameon=False, fontsize=8)


def _orders(axis: Axes, orders: xr.DataArray) -> None:
    colours = {f"order {order}": ORDER_COLOURS[order][0] for order in orders["value"].values}
    legend = {"frameon": False, "fontsize": 7, "ncols": 4, "loc": "lower center", "bbox_to_anchor": (0.5, 0.97),
              "handlelength": 0.8, "columnspacing": 0.8}  # fmt: skip
    shares = orders.transpose("token_class", "value")
    draw_stack(axis, shares, colours, horizontal=True, legend=legend, shrink=0.7, linewidth=0)
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of tokens and steps")
    axis.set_ylabel("")
    axis.set_title("effective order by token class", pad=20)


def _shares(axis: Axes, shares: dict[str, xr.Dataset]) -> None:
    """Sources that an image on its own does not have are left out."""
    kept = [any(float(table["share"].sel(source=source)) > 0 for table in shares.values()) for source in SOURCES]
    sources = [source for source, seen in zip(SOURCES, kept, strict=True) if seen]
    own = xr.concat([table.sel(source=sources) for table in shares.values()], xr.Variable("quantity", list(shares)))
    sns.barplot(own["share"].to_dataframe().reset_index(), y="source", x="share", hue="quantity", ax=axis,
                palette=[ORANGE, BLUE, BLACK][: len(shares)], saturation=1, width=WIDTH, gap=0.05)  # fmt: skip
    rows = WIDTH / len(shares) * (np.arange(len(shares)) - (len(shares) - 1) / 2)[:, None] + np.arange(len(sources))
    axis.hlines(rows.ravel(), own["null_low"].values.ravel(), own["null_high"].values.ravel(), color=BLACK, linewidth=2)
    axis.plot(own["null_mean"].values.ravel(), rows.ravel(), color=BLACK, marker="|", markersize=9, linestyle="none",
              label="null: tokens permuted (bar: 95 %)")  # fmt: skip
    axis.set_yticks(range(len(sources)), [SOURCES[source] for source in sources])
    axis.set_ylabel("")
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of the variance")
    axis.set_title("whose the variance is", pad=20)
    axis.legend(frameon=False, fontsize=7, loc="center right")
