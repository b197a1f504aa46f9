"""Which predictor every token takes, step by step, beside the image."""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import bare, draw_image, predictor_colour, style, subplots


@style()
def plot_choice_maps(scores: xr.Dataset, *, sample: int = 0, context: str | None = None, frame: int = 0) -> Figure:
    """Draw one row per window between anchors, one column per distance k; colour is the chosen predictor.

    Args:
        scores: with `choice` (sample, context, step, token), `is_full` and `distance` (sample, context, step),
            `clean_image` (sample, step, y, x, band), previews (sample, preview_step, [time,] y, x, band), or at least
            `image` (sample, y, x, band) or `video` (sample, time, y, x, band), and the coordinates `row`, `col`,
            `order`, `shift`, and `frame` where there are several.
        context: of the choices; `cond`, or the first where there is none of the name, when None.
        frame: of the tokens, for videos.
    """
    contexts = scores["context"].values.tolist()
    one = scores.isel(sample=sample).sel(context=context or ("cond" if "cond" in contexts else contexts[0]))
    frames = 1
    if "frame" in scores.coords:
        frames = int(scores["frame"].max()) + 1
        one = one.isel(token=scores["frame"].values == frame)
    skipped = one.isel(step=one["is_full"].values == 0)
    choice = skipped["choice"]  # (step, token), skip steps only
    distance = skipped["distance"].values
    window = np.cumsum(distance == 1) - 1
    colours = palette(scores)  # (predictor, 3)
    rows, columns = int(scores["row"].max()) + 1, int(scores["col"].max()) + 1
    height = 0.94 * (window[-1] + 1) + 1.67  # inches; with the title, labels and the legend
    figure, axes = subplots(
        window[-1] + 1, distance.max() + 1, squeeze=False, figsize=(1.0 * (distance.max() + 1) + 0.4, height),
        gridspec_kw={"wspace": 0.06, "hspace": 0.06, "top": 1 - 0.72 / height, "bottom": 0.95 / height},
    )  # fmt: skip
    for axis in axes.flat:
        axis.axis("off")
    for i, step in enumerate(choice["step"].values):
        axis = axes[window[i], distance[i]]
        axis.axis("on")
        bare(axis)
        axis.imshow(colours[choice.sel(step=step).values].reshape(rows, columns, 3))
        if window[i] == 0:
            axis.set_title(f"k = {distance[i]}", fontsize=8, pad=3)
    for w, axis in enumerate(axes[:, 0]):
        anchor = int(choice["step"].values[window == w][0]) - 1
        image, expected = _image_at(one, anchor, frame / max(1, frames - 1))
        title = f"image expected\nat step {anchor}" if w == 0 else f"at step {anchor}"
        axis.set_title(title if expected else "final image", fontsize=7, pad=2)
        draw_image(axis, image)
    draw_legend(figure, scores, (0.36, 0.25 / height, 0.32, 0.42 / height))
    title = "Predictor chosen by each token, k steps after the last full step"
    figure.suptitle(title, y=1 - 0.1 / height, va="top", fontsize=10)
    return figure


def _image_at(one: xr.Dataset, step: int, along: float) -> tuple[xr.DataArray, bool]:
    """Return the image (y, x, band) in [0, 1] that a step expects, or the final one, and whether it is the former.

    Args:
        along: of a video the place of the picture, from 0 to 1.
    """
    if "clean_image" in one:
        return one["clean_image"].sel(step=step), True
    name = next(name for name in ("preview", "preview_video", "image", "video") if name in one)
    image, expected = one[name], name.startswith("preview")
    if expected:
        before = np.searchsorted(one["preview_step"].values, step, side="right") - 1
        image = image.isel(preview_step=max(0, int(before))).rename(preview_y="y", preview_x="x") / 255
    if "time" in image.dims:
        image = image.isel(time=round(along * (image.sizes["time"] - 1)))
    return image, expected


def palette(scores: xr.Dataset) -> np.ndarray:
    """Return the colour of every predictor, (predictor, 3), of its coordinates `order` and `shift`."""
    orders, shifts = scores["order"].values, scores["shift"].values
    return np.array(
        [predictor_colour(int(m), float(s), float(shifts.max())) for m, s in zip(orders, shifts, strict=True)]
    )


def draw_legend(figure: Figure, scores: xr.Dataset, place: tuple[float, float, float, float]) -> None:
    """Draw the colours of orders and horizons at a place of the figure: left, bottom, width, height."""
    orders, shifts = np.unique(scores["order"].values), np.unique(scores["shift"].values)
    axis = figure.add_axes(place)
    grid = [[predictor_colour(int(m), float(s), float(shifts.max())) for s in shifts] for m in orders]
    axis.imshow(grid, aspect="auto")
    axis.set_yticks(range(len(orders)), [f"order {m}" for m in orders], fontsize=7)
    axis.set_xticks(range(len(shifts)), [f"k - {s:g}" if s else "k" for s in shifts], fontsize=7)
    axis.set_xlabel("horizon", fontsize=7, labelpad=1)
    axis.tick_params(length=0)
