"""Proxy loss against true error."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, PURPLE, draw_interval, style, subplots


@style()
def plot_proxy_vs_truth(scores: xr.Dataset, spearman: xr.DataArray, shuffled: xr.DataArray | None = None) -> Figure:
    """Left: density over samples, steps, tokens and distinct predictors. Right: rank correlation by distance.

    Args:
        scores: with `proxy_loss`, `true_error` (..., step, token, predictor), `is_distinct` (..., step, predictor).
        spearman: (distance, bound) with bounds mean, low, high: an interval over images of the rank correlation
            within (step, token).
        shuffled: the same when every token has the proxy losses of another token of its step.
    """
    is_distinct = (scores["is_distinct"] == 1).broadcast_like(scores["proxy_loss"])
    distinct = is_distinct.transpose(*scores["proxy_loss"].dims).values
    proxy, truth = (scores[name].values[distinct] for name in ("proxy_loss", "true_error"))
    seen = (proxy > 0) & (truth > 0)
    figure, (left, right) = subplots(1, 2, figsize=(7.2, 3.0), constrained_layout=True)
    density = left.hexbin(
        proxy[seen], truth[seen], xscale="log", yscale="log", bins="log", gridsize=60, cmap="viridis", linewidths=0
    )
    figure.colorbar(density, ax=left, label="count")
    left.set_xlabel("proxy loss (cosine distance of the probe)")
    left.set_ylabel("true error (relative, residual)")
    left.set_title(f"{np.count_nonzero(seen):,} predictions")
    draw_interval(right, spearman, "distance", color=BLUE, marker="o", markersize=3.5, label="own probe")
    if shuffled is not None:
        draw_interval(right, shuffled, "distance", color=PURPLE, marker="D", linestyle="--", markerfacecolor="none",
                      markersize=7, label="probe of another token")  # fmt: skip
        right.legend(frameon=False, fontsize=8, loc="upper right")
    right.axhline(0, color="0.6", linewidth=0.8)
    right.set_ylim(-0.2, 1)
    right.set_xlabel("distance k to the last anchor (steps)")
    right.set_ylabel("Spearman over predictors")
    right.set_title(f"rank correlation within a token\n(95 % interval over {scores.sizes['sample']} images)")
    return figure
