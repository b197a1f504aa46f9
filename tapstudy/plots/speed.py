"""Where the time of a skip step goes, and how much of the possible acceleration is real."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tapstudy.plots.style import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, YELLOW, draw_stack, style, subplots

COLOURS = (BLUE, SKY, VERMILION, ORANGE, GREEN, "0.7", PURPLE, YELLOW)


@style()
def plot_speed(table: xr.Dataset) -> Figure:
    """Draw a row per model: parts of a skip step in percent of a full one, and latency ratio against its bound.

    Args:
        table: quartiles over repeats: `part_share` (model, skip, part, quartile), `latency_ratio` (model, method,
            quartile), `bound` (model, method); `text` on method, `label`, `dtype` and `batch` on model. Methods that
            did not run are NaN.
    """
    models = table["model"].values.tolist()
    shown = table.isel(method=table["text"].values != "no acceleration")
    figure, axes = subplots(
        len(models), 2, figsize=(9.4, 0.9 + 2.2 * len(models)), squeeze=False, constrained_layout=True,
        gridspec_kw={"width_ratios": [2, 3]},
    )  # fmt: skip
    for row, model in zip(axes, models, strict=True):
        one = shown.sel({"model": model})
        _parts(row[0], one["part_share"].sel(quartile=0.5).dropna("skip", how="all"))
        _ratios(row[1], one)
        name = f"{one['label'].item()}, {one['dtype'].item()}, batch {int(one['batch'])}"
        row[0].set_title(name, loc="left", fontsize=8, weight="bold")  # room for it over both panels
    for column in axes.T:
        for axis in column[:-1]:
            axis.set_xlabel("")
    parts = axes[0, 0].get_legend()
    handles, labels = parts.legend_handles, [text.get_text() for text in parts.get_texts()]
    bounds, of_bounds = axes[0, 1].get_legend_handles_labels()
    for axis in axes[:, 0]:
        axis.get_legend().remove()
    figure.legend([*handles[::-1], *bounds], [*labels[::-1], *of_bounds], frameon=False, fontsize=7.5, ncols=7,
                  loc="outside upper center")  # fmt: skip
    return figure


def _parts(axis: Axes, shares: xr.DataArray) -> None:
    colours = dict(zip(shares["part"].values.tolist(), COLOURS, strict=False))
    names = ["\n".join(str(name).split()) for name in shares["skip"].values]
    shares = shares.assign_coords(skip=names).transpose("skip", "part")
    draw_stack(axis, shares, colours, legend={}, shrink=0.6, linewidth=0)
    for x, top in enumerate(shares.sum("part").values):
        axis.annotate(f"{top:.2f} %", (x, top), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_xlabel("")
    axis.set_ylabel("time, % of a full step")
    axis.margins(y=0.1)


def _ratios(axis: Axes, one: xr.Dataset) -> None:
    texts, place = one["text"].values.tolist(), np.arange(one.sizes["method"])
    low, mid, high = (one["latency_ratio"].sel(quartile=q).values for q in (0.25, 0.5, 0.75))
    axis.barh(place, mid, height=0.55, color=[VERMILION if t.startswith("TAP") else "0.65" for t in texts])
    axis.errorbar(mid, place, xerr=(mid - low, high - mid), fmt="none", ecolor=BLACK, elinewidth=0.8, capsize=2)
    axis.plot(one["bound"].values, place, "|", color=BLACK, markersize=14, label="bound: steps / full passes")
    for y, ratio in enumerate(mid):
        text = f"{ratio:.2f}" if np.isfinite(ratio) else "does not run"
        axis.annotate(text, (0, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set_yticks(place, texts)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    axis.tick_params(axis="y", labelsize=8)
    axis.set_xlabel("latency ratio, plain sampling = 1 (median, whiskers: quartiles)")
