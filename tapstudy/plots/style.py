"""One look for all figures: colour-blind safe, legible in print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
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
    """A figure that pyplot does not manage: drawing it changes nothing for other figures, and nothing has to close it.

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
    """A figure and its axes, as `pyplot.subplots` gives them.

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


def predictor_colour(order: int, shift: float, longest: float) -> tuple[float, float, float]:
    """Hue by order, fading from dark to light as the shift grows."""
    dark, light = (to_rgb(colour) for colour in ORDER_COLOURS[order % len(ORDER_COLOURS)])
    share = shift / longest if longest else 0.0
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(dark, light, strict=True))
    return red, green, blue


def plain_log_scale(axis: Axis) -> None:
    """Logarithmic, with 0.02, 0.05, 0.1, ... for ticks where powers of ten alone would leave one or two."""
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
