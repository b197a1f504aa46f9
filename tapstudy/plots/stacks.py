"""Bars of parts that stack up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes


def draw_stack(
    axis: Axes,
    shares: xr.DataArray,
    colours: Mapping[str, Any],
    *,
    horizontal: bool = False,
    legend: Mapping[str, Any],
    **look: Any,
) -> None:
    """A bar per value of the first dimension, its parts, of the second one, stacked in the order of `colours`.

    The legend has the parts as they are seen, from top to bottom or from left to right.

    Args:
        shares: (place, part), at least 0; missing ones have no height. Places that are whole numbers stand there.
        colours: name of every part -> its colour.
        legend: where it goes and how it looks.
        look: of the bars.
    """
    place, part = (str(name) for name in shares.dims)
    table = shares.fillna(0).assign_coords({part: list(colours)}).to_dataframe("share").reset_index()
    order = list(colours) if horizontal else list(colours)[::-1]
    sns.histplot(
        table, weights="share", hue=part, hue_order=list(colours)[::-1], palette=dict(colours), multiple="stack",
        discrete=True, alpha=1, ax=axis, **{"y" if horizontal else "x": place}, **look,
    )  # fmt: skip
    found = axis.get_legend()
    assert found is not None
    handles: dict[str, Any] = {
        text.get_text(): handle for text, handle in zip(found.get_texts(), found.legend_handles, strict=True)
    }
    axis.legend([handles[name] for name in order], order, **legend)
