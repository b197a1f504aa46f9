"""Curves with intervals, and spans for the steps that ran in full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes


def draw_interval(axis: Axes, values: xr.DataArray, dim: str, **look: Any) -> None:
    """Mean against `dim` with bars from low to high; `values` (dim, bound). A bound that is missing has no bar."""
    axis.errorbar(values[dim].values, values.sel(bound="mean").values, yerr=bar_lengths(values), capsize=2, **look)


def draw_band(axis: Axes, values: xr.DataArray, dim: str, **look: Any) -> None:
    """Mean against `dim` as a line in a band from low to high; `values` (dim, bound)."""
    mean, low, high = _bounds(values)
    (line,) = axis.plot(values[dim].values, mean, **look)
    axis.fill_between(values[dim].values, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def draw_level(axis: Axes, bounds: xr.DataArray, **look: Any) -> None:
    """A horizontal line at the mean in a band from low to high; `bounds` (bound)."""
    mean, low, high = (float(bounds.sel(bound=name)) for name in ("mean", "low", "high"))
    line = axis.axhline(mean, **look)
    axis.axhspan(low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def bar_lengths(values: xr.DataArray) -> list[np.ndarray]:
    """Lengths of bars around the mean, to `low` and to `high`; not negative where rounding put the mean outside."""
    mean, low, high = _bounds(values)
    return [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]


def shade_full_steps(axis: Axes, steps: Sequence[int]) -> None:
    """A grey span, one step wide, at every full step."""
    for step in steps:
        axis.axvspan(step - 0.5, step + 0.5, color="0.9", linewidth=0, zorder=0)


def _bounds(values: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, low, high = (values.sel(bound=name).values for name in ("mean", "low", "high"))
    return mean, low, high
