"""Errors of caching, of rounded weights, and of both."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    PURPLE,
    draw_interval,
    look_of,
    plain_log_scale,
    style,
    subplots,
)

CORRECTIONS = {"variance": BLUE, "affine": PURPLE, "cumulative": GREEN}
DODGE = 0.09  # bits between intervals that would hide each other


@style()
def plot_quantised(errors: xr.Dataset, ratios: xr.Dataset, *, images: int) -> Figure:
    """Draw errors against bits, whether they add, and what corrections leave; a column per schedule, 95 % intervals.

    Args:
        errors: `caching`, `rounding` and `both` of `bench.sweep.quantised`, with intervals (bound) in place of images.
        ratios: from `additivity`.
        images: behind the intervals.
    """
    intervals = errors["interval"].values.tolist()
    figure, axes = subplots(
        3, len(intervals), figsize=(4.2 * len(intervals), 8.4), sharex=True, sharey="row", squeeze=False,
        constrained_layout=True,
    )  # fmt: skip
    for column, interval in enumerate(intervals):
        top, middle, bottom = axes[:, column]
        own, told = errors.sel(interval=interval), ratios.sel(interval=interval)
        draw_interval(top, own["rounding"], "bits", color=BLACK, marker="s", markersize=3, label="rounding alone")
        for number, method in enumerate(own["method"].values):
            look = look_of(str(method))
            lines = {"color": look.colour, "marker": look.marker, "markersize": 4, "linewidth": 1.1}
            at = {"method": method}  # which `sel` has a meaning of its own for as a keyword
            both = own["both"].sel({**at, "correction": "none"})
            caching = float(own["caching"].sel({**at, "bound": "mean"}))
            top.axhline(caching, color=look.colour, linestyle=":", linewidth=1.1)
            draw_interval(top, _beside(both, number), "bits", label=f"{look.label}, both", **lines)
            draw_interval(middle, _beside(told["sum_ratio"].sel(at), number), "bits", **lines)
        for number, (correction, colour) in enumerate(CORRECTIONS.items()):
            for method, line in (("order0", ":"), ("tap", "-")):
                left = told["corrected_ratio"].sel({"method": method, "correction": correction})
                label = f"{correction}, {look_of(method).label}"
                draw_interval(bottom, _beside(left, number), "bits", color=colour, linestyle=line, marker="o",
                              markersize=3, linewidth=1.1, label=label)  # fmt: skip
        top.set_title(f"S({interval}, 3)")
        top.set_yscale("log")
        plain_log_scale(bottom.yaxis)
        for axis in (middle, bottom):
            axis.axhline(1, color="0.6", linewidth=0.8)
        bottom.set(xlabel="bits of a weight", xticks=own["bits"].values)
    axes[0, 0].invert_xaxis()
    axes[0, 0].set_ylabel("squared error of the image, mean\n(dotted: caching alone)")
    axes[1, 0].set_ylabel("error of both over the sum of either\nalone (1: they add)")
    axes[2, 0].set_ylabel("error of both with a correction\nover without (1: no use)")
    axes[0, 0].legend(frameon=False, fontsize=7)
    axes[2, -1].legend(loc="upper right", frameon=False, fontsize=7)
    figure.suptitle(f"caching on rounded weights (95 % interval over {images} images)", fontsize=9)
    return figure


def _beside(values: xr.DataArray, number: int) -> xr.DataArray:
    """Move the second and third line of a panel aside."""
    return values.assign_coords(bits=values["bits"] - DODGE * (number - 1))
