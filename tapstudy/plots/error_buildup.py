"""How errors build up along the solver."""

from __future__ import annotations

import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from tapstudy.plots.style import draw_band, look_of, shade_full_steps, style, subplots

PANELS = {
    "local_error": "local velocity error\n(RMS, units of the latent)",
    "coherence": "coherence: net error\nover path length (1)",
    "feedback_cosine": "feedback: cosine of errors and\nthe model's response (1)",
    "deviation": "deviation from the exact\ntrajectory (RMS, units of the latent)",
}


@style()
def plot_error_buildup(curves: xr.Dataset, *, full_steps: list[int], images: int) -> Figure:
    """Local error, coherence, feedback and deviation over the steps, a line per policy; 95 % bands over images.

    Args:
        curves: `local_error`, `coherence`, `feedback_cosine`, `deviation` (policy, step, bound), from `per_step`.
        full_steps: drawn grey.
        images: behind the bands.
    """
    figure, axes = subplots(2, 2, figsize=(8.4, 5.0), sharex=True, constrained_layout=True)
    for axis, (name, label) in zip(axes.flat, PANELS.items(), strict=True):
        for policy in curves["policy"].values:
            look = look_of(str(policy))
            own = curves[name].sel(policy=policy).dropna("step", how="all")
            draw_band(axis, own, "step", color=look.colour, linestyle=look.line, linewidth=1.2,
                      label=look.label.removesuffix(" (cost of TAP)"))  # fmt: skip
        shade_full_steps(axis, full_steps)
        axis.set_ylabel(label)
    axes[1, 0].axhline(0, color="0.6", linewidth=0.8)
    axes[0, 1].set_ylim(0, 1.02)
    axes[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes[1]:
        axis.set_xlabel("step (noise first; grey: full steps)")
    axes[0, 0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"errors along accelerated trajectories (95 % interval over {images} images)", fontsize=9)
    return figure
