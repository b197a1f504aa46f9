"""Numbers that TAP's authors published, redrawn beside ours."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tapstudy.plots.style import bar_lengths, look_of, style, subplots


@style()
def plot_published(published: xr.Dataset, ours: xr.Dataset, *, model: str) -> Figure:
    """PSNR by method: a panel per published model, at the speed-up it was published for, and one of our own.

    The panels differ in model, resolution, images and protocol, so only the order of the methods compares.

    Args:
        published: from `published_table`: `value` (row) with the coordinates `model`, `name`, `speedup`, `metric`.
        ours: `psnr` (run, bound), from `run_tables.frontier`, with `method` and `interval`.
        model: ours.
    """
    psnr = published.isel(row=published["metric"].values == "PSNR")
    models = list(dict.fromkeys(psnr["model"].values.tolist()))
    ours = ours.isel(run=ours["method"].values != "reference")
    figure, axes = subplots(1, len(models) + 1, figsize=(3.3 * (len(models) + 1) + 0.6, 3.6), constrained_layout=True)
    for axis, name in zip(axes, models, strict=False):
        _published_panel(axis, psnr.isel(row=psnr["model"].values == name))
        axis.set_title(f"{name}\nas published by TAP's authors")
    _own_panel(axes[-1], ours)
    axes[-1].set_title(f"{model}\nmeasured here, {ours.attrs['images']} images")
    for axis in axes:
        axis.set_xlabel("PSNR to the reference (dB)")
        axis.invert_yaxis()
        axis.margins(x=0.15)
    source = str(psnr["source"].values[0])
    figure.supxlabel(f"Published: {source}.\nOther models, images and protocols: only the order compares.", fontsize=7)
    return figure


def _published_panel(axis: Axes, table: xr.Dataset) -> None:
    rows = range(table.sizes["row"])
    colours = [look_of(str(method)).colour for method in table["method"].values]
    axis.barh(rows, table["value"].values, color=colours, height=0.6, alpha=0.85)
    names = zip(table["name"].values, table["speedup"].values, strict=True)
    axis.set_yticks(rows, [f"{name}\n{speedup:g}x" for name, speedup in names], fontsize=7)
    for y, value in enumerate(table["value"].values):
        axis.annotate(f"{value:.2f}", (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)


def _own_panel(axis: Axes, ours: xr.Dataset) -> None:
    rows = np.arange(ours.sizes["run"])
    mean = ours["psnr"].sel(bound="mean").values
    looks = [look_of(str(method)) for method in ours["method"].values]
    axis.barh(rows, mean, xerr=bar_lengths(ours["psnr"]), color=[look.colour for look in looks], height=0.7, alpha=0.85,
              error_kw={"elinewidth": 0.8, "capsize": 2})  # fmt: skip
    names = zip(looks, ours["interval"].values, strict=True)
    axis.set_yticks(rows, [f"{look.label}, N = {interval}" for look, interval in names], fontsize=7)
