"""The map explorer as one figure: a layer over the image, and what one token sees."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from tapstudy.plots.explorer_style import BEST, CHOSEN, NOTHING, Layer, category_colours, horizon_label
from tapstudy.plots.style import StudyFigure, style

MARKERS = "os^v"  # by order, so that colour is not alone in telling them apart


def plot_explorer(one: xr.Dataset, *, step: int, token: int, layer: Layer, opacity: float = 0.9) -> Figure:
    """Left: the layer over the image. Right: the token's true error over steps, and every predictor at this step.

    Args:
        one: one sample, context and frame of what `explorer.prepare` makes: variables (step, token[, predictor]).
        step, token: positions.
        opacity: of the layer, 0 to 1.
    """
    with style():
        figure = StudyFigure(figsize=(9.4, 5.0), dpi=100)  # placed by hand: an automatic layout draws everything twice
        _draw_map(figure, one.isel(step=step), token=token, layer=layer, opacity=opacity)
        _draw_over_steps(figure.add_axes((0.57, 0.60, 0.42, 0.34)), one.isel(token=token), step)
        _draw_at_step(figure.add_axes((0.57, 0.10, 0.42, 0.34)), one.isel(step=step, token=token))
    return figure


def _draw_map(figure: Figure, now: xr.Dataset, *, token: int, layer: Layer, opacity: float) -> None:
    axis = figure.add_axes((0.01, 0.23, 0.47, 0.71))
    _, rows, columns = now.attrs["grid"]
    box = (0, columns, rows, 0)  # left, right, bottom, top, in tokens
    if "image" in now:
        image = now["image"].values  # (y, x, band)
        axis.imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray_r", vmin=0, vmax=255, extent=box)
    values = now[layer.name].values.astype(float).reshape(rows, columns)
    if layer.kind == "category":
        colours = category_colours(now)[layer.name]
        shown = np.array([[to_rgba(colours.get(value, "none")) for value in row] for row in values.tolist()])
        _draw_category_legend(figure, now, layer)
    else:
        scale = LogNorm if layer.kind == "log" else Normalize
        attrs = now[layer.name].attrs
        mappable = ScalarMappable(scale(attrs["low"], attrs["high"]), mpl.colormaps["viridis"])
        shown = np.array(mappable.to_rgba(np.ma.masked_less_equal(np.nan_to_num(values), 0)))
        shown[values <= 0] = to_rgba(NOTHING)
        shown[np.isnan(values)] = 0
        title = f"{layer.title} (light grey: 0)" if layer.name == "regret" else layer.title
        bar = figure.colorbar(mappable, cax=figure.add_axes((0.05, 0.14, 0.39, 0.03)), orientation="horizontal")
        bar.set_label(title)
        if layer.kind == "log":
            _plain_ticks(bar.ax.xaxis, (1.0,))
    axis.imshow(shown, extent=box, alpha=shown[..., 3] * opacity)
    row, column = divmod(token, columns)
    for colour, width in (("white", 4), ("black", 1.8)):
        axis.add_patch(Rectangle((column, row), 1, 1, fill=False, edgecolor=colour, linewidth=width, clip_on=False))
    axis.set(xlim=(0, columns), ylim=(rows, 0), xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    state = "full step, no choice" if int(now["is_full"]) == 1 else f"k = {int(now['distance'])}"
    axis.set_title(f"step {int(now['step'])}, {state}")


def _draw_category_legend(figure: Figure, now: xr.Dataset, layer: Layer) -> None:
    orders, shifts = now["order"].values.tolist(), now["shift"].values.tolist()
    colours = category_colours(now)[layer.name]
    if layer.name == "choice":
        texts = [f"{m}: {horizon_label(s)}" for m, s in zip(orders, shifts, strict=True)]
    elif layer.name == "chosen_order":
        texts = [f"order {m:g}" for m in colours]
    else:
        texts = [horizon_label(s) for s in colours]
    handles = [Patch(color=colour, label=text) for colour, text in zip(colours.values(), texts, strict=True)]
    title = "order: horizon" if layer.name == "choice" else layer.title
    count = len(set(orders)) if layer.name == "choice" else len(handles)
    figure.legend(
        handles=handles, title=title, loc="upper center", bbox_to_anchor=(0.245, 0.23), ncols=count, fontsize=8,
        title_fontsize=9, frameon=False, labelspacing=0.3,
    )  # fmt: skip


def _plain_ticks(axis: Axis, parts: tuple[float, ...]) -> None:
    """Numbers as they are, not as powers of ten."""
    axis.set_major_locator(LogLocator(subs=parts))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _draw_over_steps(axis: Axes, here: xr.Dataset, step: int) -> None:
    steps = here["step"].values
    for full in steps[here["is_full"].values == 1]:
        axis.axvspan(full - 0.5, full + 0.5, color="#e4e8ec", linewidth=0)
    axis.axvline(steps[step], color="black", linewidth=1)
    colours = category_colours(here)["choice"]
    for p in here.attrs["plain"]:
        one = here.isel(predictor=p)
        label = f"order {int(one['order'])}, {horizon_label(float(one['shift']))}"
        axis.plot(steps, one["true_error"], color=colours[p], linewidth=1.2, label=label)
    axis.plot(steps, here["best_error"], color=BEST, linewidth=2, linestyle=(0, (3, 1.5)), label="best (oracle)")
    axis.plot(steps, here["chosen_error"], color=CHOSEN, linewidth=2, label="chosen")
    axis.set(yscale="log", xlabel="step", ylabel="true error (relative)", title="Over steps (grey: full steps)")
    _plain_ticks(axis.yaxis, (1.0,))
    axis.legend(fontsize=7, frameon=False, ncols=2, loc="upper right")


def _draw_at_step(axis: Axes, here: xr.Dataset) -> None:
    chosen, best = int(here["choice"]), int(here["best"])
    axis.set_title(f"At step {int(here['step'])}: every predictor")
    if best < 0:
        axis.axis("off")
        axis.text(0.5, 0.5, "nothing was forecast at this step", ha="center", transform=axis.transAxes, color="0.35")
        return
    orders = sorted(set(here["order"].values.tolist()))
    colours = category_colours(here)["choice"]
    proxy, truth = here["proxy_loss"].values.astype(float), here["true_error"].values.astype(float)
    shown = {
        *np.flatnonzero(here["is_distinct"].values == 1).tolist(),
        best,
        chosen,
    }  # identical ones would only overlap
    for p, order in reversed(list(enumerate(here["order"].values.tolist()))):
        if p not in shown:
            continue
        marker = MARKERS[orders.index(order) % len(MARKERS)]
        axis.plot(proxy[p], truth[p], marker, color=colours[p], markeredgecolor="0.3", markeredgewidth=0.6)
    rings: list[tuple[int, float, str, Any, str]] = [(best, 15, BEST, (0, (2, 1.2)), "best")]
    if chosen >= 0:
        rings.append((chosen, 10, CHOSEN, "-", "chosen"))
    for p, size, colour, dashes, _ in rings:
        axis.scatter(proxy[p], truth[p], s=size**2, facecolor="none", edgecolor=colour, linestyle=dashes, linewidth=2)
    axis.set(xscale="log", yscale="log", xlabel="proxy loss", ylabel="true error (relative)")
    _plain_ticks(axis.xaxis, (1.0, 2.0, 5.0))
    _plain_ticks(axis.yaxis, (1.0, 1.5, 2.0, 3.0, 5.0, 7.0))
    axis.margins(0.14)
    low, high = axis.get_ylim()
    axis.set_ylim(low, high * (high / low) ** 0.15)  # room for the legend
    handles = [
        Line2D([], [], linestyle="none", marker=MARKERS[i % len(MARKERS)], color="0.35", label=f"order {order}")
        for i, order in enumerate(orders)
    ]
    handles += [
        Line2D([], [], linestyle="none", marker="o", fillstyle="none", color=colour, markeredgewidth=2, label=text)
        for _, _, colour, _, text in rings
    ]
    axis.legend(handles=handles, fontsize=7, frameon=False, ncols=len(handles), loc="upper left", columnspacing=0.8)
