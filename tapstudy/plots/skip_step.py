"""What a skip step costs, and where the time goes."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from tapstudy.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, style

COLOURS = (BLUE, SKY, GREEN, VERMILION, ORANGE, PURPLE, YELLOW, BLACK)


def plot_skip_step(cost: xr.Dataset) -> Figure:
    """Left: a skip step beside a full one, on a logarithmic axis. Right: the parts of the skip step.

    Args:
        cost: `seconds` (kind) and `part_seconds` (part), from `SkipStepCost.to_dataset`, attributes `model`,
            `batch_size` and `threads`.
    """
    kinds, parts = [str(kind) for kind in cost["kind"].values], [str(part) for part in cost["part"].values]
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9), constrained_layout=True)
        left.barh(range(len(kinds)), cost["seconds"].values, color=[BLACK, "0.5", VERMILION], height=0.6)
        left.set_xscale("log")
        left.set_yticks(range(len(kinds)), [f"{kind} step" if " " not in kind else kind for kind in kinds])
        place = np.arange(len(parts))
        right.barh(place, cost["part_seconds"].values, color=[COLOURS[i % len(COLOURS)] for i in place], height=0.7)
        right.set_yticks(place, parts)
        for axis, values in ((left, cost["seconds"].values), (right, cost["part_seconds"].values)):
            axis.invert_yaxis()
            axis.xaxis.set_major_formatter(EngFormatter(unit="s"))
            axis.set_xlabel("median wall time")
            for y, value in enumerate(values):
                axis.annotate(EngFormatter(unit="s", places=1)(value), (value, y), xytext=(3, 0),
                              textcoords="offset points", va="center", fontsize=7)  # fmt: skip
            axis.margins(x=0.2)
        right.set_title("parts of a skip step")
        attrs = cost.attrs
        left.set_title(f"{attrs['model']}, batch {attrs['batch_size']} with guidance, threads: {attrs['threads']}")
    return figure
