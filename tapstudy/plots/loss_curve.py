"""Training loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, style, subplots


@style()
def plot_loss(losses: Sequence[float], *, window: int = 50) -> Figure:
    """Loss of every step, and its running mean over `window` steps."""
    values = np.asarray(losses)
    window = min(window, len(values))
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    figure, axis = subplots(figsize=(4.5, 2.6), constrained_layout=True)
    axis.plot(np.arange(1, len(values) + 1), values, color="0.8", linewidth=0.6, label="every step")
    axis.plot(np.arange(window, len(values) + 1), smooth, color=BLUE, label=f"mean of {window} steps")
    axis.set_xlabel("training step")
    axis.set_ylabel("loss (mean squared error of the velocity)")
    axis.legend(frameon=False)
    return figure
