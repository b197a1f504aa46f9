"""How varied the choices of a step are, how they lie in the image, and how often they change."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, GREEN, ORANGE, VERMILION, draw_interval, shade_full_steps, style, subplots


@style()
def plot_choice_entropy(curves: xr.Dataset, *, full_steps: list[int], images: int) -> Figure:
    """Entropy, spatial autocorrelation and switching over the steps; 95 % intervals over images.

    Args:
        curves: `entropy`, `moran_order`, `switch_within`, `switch_across` (step, bound), of `choice_statistics`; steps
            without a value are left out or NaN.
        full_steps: drawn grey.
        images: behind the intervals.
    """
    figure, (top, middle, bottom) = subplots(3, 1, figsize=(7.2, 5.4), sharex=True, constrained_layout=True)
    look = {"markersize": 3, "linewidth": 0.9, "linestyle": "none"}
    draw_interval(top, curves["entropy"], "step", color=BLUE, marker="o", **look)
    top.set_ylabel("entropy of the\nchoices (bit)")
    top.set_ylim(bottom=0)
    draw_interval(middle, curves["moran_order"], "step", color=GREEN, marker="s", **look)
    middle.axhline(0, color="0.6", linewidth=0.8)
    middle.set_ylabel("Moran's I of the\nchosen order (1)")
    for name, colour, marker, label in (
        ("switch_within", VERMILION, "o", "from the skip step before, same anchors"),
        ("switch_across", ORANGE, "D", "across a full step"),
    ):
        draw_interval(bottom, curves[name], "step", color=colour, marker=marker, label=label, **look)
    bottom.set_ylim(0, 1.02)
    bottom.set_ylabel("share of tokens\nthat switch")
    bottom.set_xlabel("step (noise first; grey: full steps)")
    bottom.legend(frameon=False, fontsize=7, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axis in (top, middle, bottom):
        shade_full_steps(axis, full_steps)
    top.set_title(f"choices of TAP (95 % interval over {images} images)")
    return figure
