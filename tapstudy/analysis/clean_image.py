"""The image as it forms: what the model expects the clean image to be, at every step."""

from __future__ import annotations

from math import isqrt

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.require import require
from tapstudy.analysis.result import lazily

Array = NDArray[np.floating]


def clean_images(recording: xr.Dataset) -> xr.DataArray:
    """x_i - sigma_i v_i at every step but the last, with the velocity that the sampler went on with.

    For flow matching with Euler steps in pixel space: v_i = (x_(i+1) - x_i) / (sigma_(i+1) - sigma_i), guidance and
    all.

    Args:
        recording: with `latent` (sample, [context,] step, token, latent_channel), `image` (sample, y, x, band), and the
            coordinates `sigma`, `row` and `col`.

    Returns:
        (sample, step, y, x, band), in [0, 1].

    Raises:
        ValueError: variables are missing, or the latent is not the image in patches.
    """
    require(
        recording,
        "clean_images",
        latent=("sample", "step", "token", "latent_channel"),
        image=("sample", "y", "x", "band"),
        sigma=("step",),
    )
    latent = recording["latent"]
    if "context" in latent.dims:
        latent = latent.isel(context=0)  # all branches of guidance see the same latent
    rows, columns = int(recording["row"].max()) + 1, int(recording["col"].max()) + 1
    bands, (height, width) = recording.sizes["band"], (recording.sizes["y"], recording.sizes["x"])
    side = isqrt(latent.sizes["latent_channel"] // bands)
    if (rows * side, columns * side, side * side * bands) != (height, width, latent.sizes["latent_channel"]):
        raise ValueError(
            f"clean_images: {rows} x {columns} tokens of {latent.sizes['latent_channel']} values are not the patches "
            f"of a {height} x {width} x {bands} image: it works for models in pixel space"
        )
    sigma = np.asarray(recording["sigma"].values, dtype=np.float64)

    def forming(states: Array) -> Array:
        states = states.astype(np.float64)  # (..., step, token, latent_channel)
        gap = np.diff(sigma)[:, None, None]
        clean = states[..., :-1, :, :] - sigma[:-1, None, None] * np.diff(states, axis=-3) / gap
        patches = clean.reshape(*clean.shape[:-2], rows, columns, side, side, bands)
        pixels = np.moveaxis(patches, -3, -4).reshape(*clean.shape[:-2], height, width, bands)
        return np.clip(pixels / 2 + 0.5, 0, 1).astype(np.float32)

    found = lazily(
        forming, latent, core=("step token latent_channel",), out=("step y x band",), dtypes=(np.float32,),
        sizes={"step": len(sigma) - 1, "y": height, "x": width, "band": bands}, exclude_dims={"step"},
    )  # fmt: skip
    found = found.assign_coords(step=recording["step"].values[:-1])
    return found.rename("clean_image").assign_attrs(long_name="expected clean image", units="1")
