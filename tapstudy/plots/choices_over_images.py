"""Images as they end, beside maps of the predictors that their tokens took on the way."""

from __future__ import annotations

from collections.abc import Sequence

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.choice_maps import draw_legend, palette
from tapstudy.plots.style import bare, draw_image, style, subplots


@style()
def plot_choices_over_images(run: xr.Dataset, exact: xr.DataArray, *, steps: Sequence[int] | None = None) -> Figure:
    """Draw one row per image: without acceleration, accelerated, and the chosen predictors at some steps.

    Args:
        run: closed-loop, with `choice` (sample, context, step, token), `is_full` and `distance` (sample, context,
            step), `image` (sample, y, x, band), and the coordinates `row`, `col`, `order`, `shift`.
        exact: images (sample, y, x, band) in [0, 1] without acceleration, of the same samples.
        steps: of the maps, skip steps all; by default the last one before every full step, and the last of all.
    """
    one = run.sel(context="cond") if "cond" in run["context"] else run.isel(context=0)
    full = one["is_full"].isel(sample=0).to_series().astype(bool)  # (step,), the same for every image
    if steps is None:
        steps = [int(step) for step in full.index[~full & full.shift(-1, fill_value=True)] if step > full.index[1]]
    distance = one["distance"].isel(sample=0)
    colours = palette(run)  # (predictor, 3)
    grid = int(run["row"].max()) + 1, int(run["col"].max()) + 1, 3
    count = run.sizes["sample"]
    figure, axes = subplots(
        count, 2 + len(steps), figsize=(1.0 * (2 + len(steps)), 1.0 * count), squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.05, "left": 0, "right": 1, "top": 1, "bottom": 0},
    )  # fmt: skip
    for line, image, before, choice in zip(axes, one["image"], exact, one["choice"], strict=True):
        draw_image(line[0], before)
        draw_image(line[1], image)
        for axis, step in zip(line[2:], steps, strict=True):
            bare(axis)
            axis.imshow(colours[choice.sel(step=step).values].reshape(grid))
    titles = [f"full model\n{full.size} passes", f"TAP\n{int(full.sum())} passes"]
    titles += [f"step {step}\nk = {int(distance.sel(step=step))}" for step in steps]
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=8, pad=3)
    draw_legend(figure, run, (0.35, -0.13, 0.4, 0.1))
    return figure
