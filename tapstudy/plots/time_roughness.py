"""How rough a model is in time."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, GREEN, ORANGE, PURPLE, VERMILION, plain_log_scale, style, subplots

COLOURS = {"probe": GREEN, "residual": VERMILION, "output": BLUE}


@style()
def plot_time_roughness(roughness: xr.Dataset, *, quantity: str = "residual") -> Figure:
    """Draw second differences when time alone moves, those of real steps, the share of the clock, and Taylor forecasts.

    Args:
        roughness: from `time_roughness`; everything is averaged over its samples.
        quantity: of the first two panels.
    """
    mean = roughness.mean("sample", keep_attrs=True)
    own = mean.sel(quantity=quantity)
    figure, axes = subplots(2, 2, figsize=(8.4, 6.0), constrained_layout=True)
    clock, steps, share, forecast = axes.flat

    offsets = own["offset"].values
    shades = mpl.colormaps["viridis"](np.linspace(0, 0.85, own.sizes["place"]))
    for shade, (_, place) in zip(shades, own.groupby("place_time"), strict=True):
        label = f"t = {float(place['place_time'].item()):.0f}"
        clock.plot(
            offsets, place["clock_second_difference"].values.ravel(), "o-", color=shade, markersize=3, label=label
        )
    found = own["clock_second_difference"]
    first = float(found.isel(offset=-1).mean())
    clock.plot(offsets, first * (offsets / offsets[-1]) ** 2, ":", color="0.4", label="smooth: as $d^2$")
    clock.set_xlabel("time moved by d (of 1000), latent fixed")
    clock.set_ylabel(f"second difference of the {quantity},\nrelative")
    clock.set_title("if the time alone moves")
    plain_log_scale(clock.xaxis)
    clock.set_yscale("log")
    clock.legend(frameon=False, fontsize=7)

    for colour, count in zip((ORANGE, PURPLE, BLUE, GREEN, VERMILION) * 9, own["steps"].values, strict=False):
        one = own.sel(steps=count)
        steps.plot(one["time"], one["second_difference"], color=colour, linewidth=1.2, label=f"T = {count}")
        at = one["point_step"].values
        there = at >= 0
        steps.plot(one["time"].values[at[there]], one["tremble"].values[there], "x", color=colour, markersize=5)
    steps.plot([], [], "x", color="0.3", label="the clock's part")
    steps.invert_xaxis()
    steps.set_xlabel("time (of 1000, noise first)")
    steps.set_ylabel(f"second difference of the {quantity},\nrelative")
    steps.set_title("of a step of the trajectory")
    plain_log_scale(steps.yaxis)
    steps.legend(frameon=False, fontsize=7)

    places = np.arange(mean.sizes["steps"])
    labels = [f"T = {count}" for count in mean["steps"].values]
    for index, name in enumerate(mean["quantity"].values):
        values = 100 * mean["clock_share"].sel(quantity=name).values
        share.bar(places + 0.25 * (index - 1), values, 0.22, color=COLOURS[str(name)], label=str(name))
    share.set(xticks=places, xticklabels=labels, ylim=(0, 105))
    share.set_ylabel("share of the clock in a step's\nsecond difference (%)")
    share.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, ncols=3, fontsize=7)

    for index, order in enumerate(mean["order"].values):
        values = mean["forecast_error"].sel(order=order).values
        look = {"color": ("0.7", "0.5", "0.2")[index], "marker": "v^D"[index], "linestyle": "none"}
        forecast.plot(places + 0.15 * (index - 1), values, label=f"order {order}", **look)
    forecast.set_xlim(-0.5, len(places) - 0.5)
    forecast.set(xticks=places, xticklabels=labels)
    forecast.set_ylabel(f"error of Taylor forecasts of the\nresidual on S({roughness.attrs['interval']}, 3), relative")
    plain_log_scale(forecast.yaxis)
    forecast.legend(frameon=False, fontsize=7)

    low_pass = roughness.attrs["smooth_time"]
    under = f", low-pass of the clock of sigma {low_pass:g}" if low_pass else ""
    images = roughness.sizes["sample"]
    of = f"mean over {images} images" if images > 1 else "1 image"
    figure.suptitle(f"roughness in time ({of}{under})", fontsize=9)
    return figure
