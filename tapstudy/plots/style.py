"""One look for all figures: colour-blind safe, legible in print; how methods are named, and what figures share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib as mpl
import numpy as np
import seaborn as sns
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

# Okabe and Ito's palette
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip

ORDER_COLOURS = (("#4d4d4d", "#e0e0e0"), ("#08519c", "#c6dbef"), ("#a63603", "#fdd0a2"), ("#006d2c", "#c7e9c0"))

RC: dict[str, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "image.interpolation": "nearest",
    "svg.hashsalt": "tapstudy",  # the same figure gives the same file
}


class StudyFigure(Figure):
    """Hold a figure that pyplot does not manage: it changes nothing for other figures, and nothing has to close it.

    It opens no window. A notebook shows it where it is the last line of a cell or given to `display`.
    """

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        with style():
            self.savefig(buffer, format="png", dpi=self.dpi, bbox_inches="tight")
        return buffer.getvalue()


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], constrained_layout: bool = False, **grid: Any
) -> tuple[StudyFigure, Any]:
    """Return a figure and its axes, as `pyplot.subplots` gives them.

    Args:
        rows, columns: of axes.
        figsize: inches.
        constrained_layout: place the axes so that no texts overlap.
        grid: as `Figure.subplots` takes it.
    """
    figure = StudyFigure(figsize=figsize, layout="constrained" if constrained_layout else None)
    return figure, figure.subplots(rows, columns, **grid)


@contextmanager
def style() -> Iterator[None]:
    """Draw in the package's style, leaving the caller's settings alone."""
    with mpl.rc_context(RC):  # type: ignore[arg-type]
        yield


def bare(axis: Axes) -> None:
    """Leave out ticks and spines."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def draw_image(axis: Axes, image: xr.DataArray) -> None:
    """Draw an image in [0, 1], (y, x) or (y, x, band), one band in grey, without ticks and spines."""
    bare(axis)
    axis.imshow(image[..., 0] if image.sizes.get("band") == 1 else image, cmap="gray_r", vmin=0, vmax=1)


def small_print(figure: Figure, *parts: str) -> None:
    """Write what is drawn (model, images, settings) below everything else; empty parts are left out."""
    figure.draw_without_rendering()  # so that a layout that moves axes has moved them
    box = figure.get_tightbbox()  # inches
    wide = fill(" · ".join(part for part in parts if part), round(box.width * 20))  # letters of this size that fit
    width, height = figure.get_size_inches()
    figure.text(box.x0 / width, (box.y0 - 0.06) / height, wide, fontsize=6, color="0.35", va="top")


def predictor_colour(order: int, shift: float, longest: float) -> tuple[float, float, float]:
    """Choose the hue by order, fading from dark to light as the shift grows."""
    dark, light = (to_rgb(colour) for colour in ORDER_COLOURS[order % len(ORDER_COLOURS)])
    share = shift / longest if longest else 0.0
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(dark, light, strict=True))
    return red, green, blue


def plain_log_scale(axis: Axis) -> None:
    """Make it logarithmic, with ticks at 0.02, 0.05, 0.1, ... where powers of ten alone would leave one or two."""
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})  # type: ignore[attr-defined]
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: str | Path, name: str) -> list[Path]:
    """Write `name.png` and `name.svg`; the same figure gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}.{kind}" for kind in ("png", "svg")]
    with style():
        figure.savefig(paths[0], metadata={"Software": None}, bbox_inches="tight")
        figure.savefig(paths[1], metadata={"Date": None}, bbox_inches="tight")
    return paths


@dataclass(frozen=True)
class Look:
    """Hold a label, colour and marker; markers differ, too, so that print in grey can be read."""

    label: str
    colour: str
    marker: str
    line: str = "-"
    width: float = 1.1


LOOKS = {
    "reference": Look("no acceleration", BLACK, "*", ":"),
    "fewer": Look("fewer plain steps", BLACK, "s", "--"),
    "order0": Look("order 0 (FORA)", "0.55", "v"),
    "order1": Look("Taylor order 1", BLUE, "^"),
    "order2": Look("Taylor order 2", SKY, "D"),
    "best-fixed": Look("best fixed predictor (held out)", GREEN, "P"),
    "step-table": Look("table: one predictor per step (held out)", "0.7", "<"),
    "random": Look("random choice", PURPLE, "X", "--"),
    "shuffled": Look("TAP, losses shuffled over tokens", PURPLE, "d"),
    "step": Look("TAP, one choice per step", ORANGE, "h"),
    "tap": Look("TAP", VERMILION, "o", "-", 2.0),
    "oracle": Look("oracle per token (cost of TAP)", "0.3", "_", ":"),
}


def look_of(method: str) -> Look:
    """Return the look of a method; of an unknown one, grey and under its own name."""
    return LOOKS.get(method, Look(method, "0.7", "."))


def draw_interval(axis: Axes, values: xr.DataArray, dim: str, **look: Any) -> None:
    """Draw mean against `dim` with bars from low to high; `values` (dim, bound). A bound that is missing has no bar."""
    axis.errorbar(values[dim].values, values.sel(bound="mean").values, yerr=bar_lengths(values), capsize=2, **look)


def draw_band(axis: Axes, values: xr.DataArray, dim: str, **look: Any) -> None:
    """Draw mean against `dim` as a line in a band from low to high; `values` (dim, bound)."""
    mean, low, high = _bounds(values)
    (line,) = axis.plot(values[dim].values, mean, **look)
    axis.fill_between(values[dim].values, low, high, color=line.get_color(), alpha=0.2, linewidth=0)


def draw_level(axis: Axes, bounds: xr.DataArray, **look: Any) -> None:
    """Draw a horizontal line at the mean in a band from low to high; `bounds` (bound)."""
    mean, low, high = (float(bounds.sel(bound=name)) for name in ("mean", "low", "high"))
    line = axis.axhline(mean, **look)
    axis.axhspan(low, high, color=line.get_color(), alpha=0.15, linewidth=0)


def bar_lengths(values: xr.DataArray) -> list[np.ndarray]:
    """Return the lengths of bars from the mean to `low` and to `high`; not negative where rounding put it outside."""
    mean, low, high = _bounds(values)
    return [np.maximum(mean - low, 0), np.maximum(high - mean, 0)]


def shade_full_steps(axis: Axes, steps: Sequence[int]) -> None:
    """Draw a grey span, one step wide, at every full step."""
    for step in steps:
        axis.axvspan(step - 0.5, step + 0.5, color="0.9", linewidth=0, zorder=0)


def _bounds(values: xr.DataArray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mean, low, high = (values.sel(bound=name).values for name in ("mean", "low", "high"))
    return mean, low, high


def draw_stack(
    axis: Axes,
    shares: xr.DataArray,
    colours: Mapping[str, Any],
    *,
    horizontal: bool = False,
    legend: Mapping[str, Any],
    **look: Any,
) -> None:
    """Draw a bar per value of the first dimension, its parts, of the second one, stacked in the order of `colours`.

    The legend has the parts as they are seen, from top to bottom or from left to right.

    Args:
        shares: (place, part), at least 0; missing ones have no height. Places that are whole numbers stand there.
        colours: name of every part -> its colour.
        legend: where it goes and how it looks.
        look: of the bars.
    """
    place, part = (str(name) for name in shares.dims)
    table = shares.fillna(0).assign_coords({part: list(colours)}).to_dataframe("share").reset_index()
    order = list(colours) if horizontal else list(colours)[::-1]
    sns.histplot(
        table, weights="share", hue=part, hue_order=list(colours)[::-1], palette=dict(colours), multiple="stack",
        discrete=True, alpha=1, ax=axis, **{"y" if horizontal else "x": place}, **look,
    )  # fmt: skip
    found = axis.get_legend()
    assert found is not None
    handles: dict[str, Any] = {
        text.get_text(): handle for text, handle in zip(found.get_texts(), found.legend_handles, strict=True)
    }
    axis.legend([handles[name] for name in order], order, **legend)
