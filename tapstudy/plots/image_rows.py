"""Images of several runs, one row each."""

from __future__ import annotations

from collections.abc import Mapping

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import style, subplots


@style()
def plot_image_rows(rows: Mapping[str, xr.DataArray]) -> Figure:
    """Images in [0, 1], (sample, y, x, band) or (sample, y, x), the same samples in every row.

    Args:
        rows: what to write beside a row -> its images.
    """
    count = max(images.sizes["sample"] for images in rows.values())
    figure, axes = subplots(
        len(rows), count, figsize=(1.0 * count, 1.0 * len(rows)), squeeze=False,
        gridspec_kw={"wspace": 0.05, "hspace": 0.08},
    )  # fmt: skip
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
            axis.spines[:].set_visible(False)
        for axis, index in zip(line, range(images.sizes["sample"]), strict=False):
            image = images.isel(sample=index)
            if "band" in image.dims and image.sizes["band"] == 1:
                image = image.isel(band=0)
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=1)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return figure
