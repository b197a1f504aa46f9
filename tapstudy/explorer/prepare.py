"""A few samples of a recording, loaded and laid out on the token grid: what the page draws."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import ceil

import numpy as np
import xarray as xr

from tapstudy.analysis.clean_image import clean_images
from tapstudy.analysis.explorer_layers import explorer_layers
from tapstudy.analysis.require import require

DEFAULT_SAMPLES = 4
LONGEST_SIDE = 256  # pixels of the image under the map

RECORDED = ("choice", "proxy_loss", "true_error", "is_full", "distance", "is_distinct")
CANONICAL = ("sample", "context", "step", "token", "predictor")


def prepare(recording: xr.Dataset, *, samples: Sequence[int] | None = None) -> xr.Dataset:
    """Load what the explorer shows.

    Args:
        recording: with scores (`choice`, `proxy_loss`, `true_error`, `is_full`, `distance`, `is_distinct`) and the
            coordinates `row` and `col` (`frame`) on token. `probe`, `latent` and `image` are used if there.
        samples: positions in the recording; the first four when None.

    Returns:
        In memory: the scores and the layers of `explorer_layers`, (sample, context, step, token[, predictor]), tokens
        sorted by frame, row and column; `image` (sample, step, y, x, band) uint8, the expected clean image at every
        step, or without `step` the final one; coordinates `number` and `name` on sample; the attributes `grid`
        (frames, rows, columns), `title` and `plain` (for every order, the predictor with the smallest shift).
        Layers and errors have the attributes `low` and `high`: 1st and 99th percentile of what is above 0.

    Raises:
        ValueError: no scores; unknown samples; tokens that do not fill a grid.
    """
    explorer_layers(recording)  # says what scores lack before anything is read
    require(
        recording,
        "explore",
        is_full=("step",),
        distance=("step",),
        is_distinct=("step", "predictor"),
        row=("token",),
        col=("token",),
    )
    numbers = _known(samples, recording.sizes.get("sample", 1))
    chosen = recording if "sample" in recording.dims else recording.expand_dims("sample")
    chosen, grid = _on_grid(chosen.isel(sample=numbers))
    images = _images(chosen)
    scored = xr.merge([chosen[[*RECORDED]], explorer_layers(chosen)], compat="override").reset_coords(drop=True)
    if "context" not in scored.dims:
        scored = scored.expand_dims(context=["all"])
    data = scored.transpose(*CANONICAL).load()
    if images is not None:
        data["image"] = images
    kept = [name for name in ("sigma", "timestep", "order", "shift", "row", "col", "frame") if name in chosen.coords]
    data = data.assign_coords({name: chosen[name].load() for name in kept})
    data = data.assign_coords(number=("sample", numbers), name=("sample", _names(chosen)))
    for variable in data.data_vars.values():
        if variable.dtype.kind == "f":
            low, high = _limits(variable.values)
            variable.attrs |= {"low": low, "high": high}
    return data.assign_attrs(grid=grid, title=_title(recording), plain=_plain(data))


def _known(samples: Sequence[int] | None, count: int) -> list[int]:
    if samples is None:
        return list(range(min(DEFAULT_SAMPLES, count)))
    wanted = [int(sample) for sample in samples]
    unknown = [sample for sample in wanted if not 0 <= sample < count]
    if unknown or not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(
            f"explore: samples must be different numbers from 0 to {count - 1}, those of the recording, got {wanted}"
        )
    return wanted


def _on_grid(chosen: xr.Dataset) -> tuple[xr.Dataset, list[int]]:
    """Sort tokens by frame, row and column, and tell how many there are of each."""
    row, column = chosen["row"].values, chosen["col"].values
    frame = chosen["frame"].values if "frame" in chosen.coords else np.zeros_like(row)
    grid = [len(np.unique(values)) for values in (frame, row, column)]
    if len({*zip(frame, row, column, strict=True)}) != len(row) or np.prod(grid) != len(row):
        raise ValueError(
            f"explore: {len(row)} tokens do not fill a grid of {' x '.join(map(str, grid))} (frames, rows, columns): "
            "it needs a recording of all tokens"
        )
    return chosen.isel(token=np.lexsort((column, row, frame))), grid


def _images(chosen: xr.Dataset) -> xr.DataArray | None:
    """Return images, uint8: at every step where latents tell, else the final one, or none."""
    if "image" not in chosen:
        return None
    final = chosen["image"].transpose("sample", "y", "x", "band")
    found = final
    if "latent" in chosen:
        try:
            forming = clean_images(chosen)  # all steps but the last; what is expected there is the final image
        except ValueError:
            pass  # a latent that is not the image in patches
        else:
            last = final.expand_dims(step=chosen["step"].values[-1:], axis=1)
            found = xr.concat(
                [forming.reset_coords(drop=True), last.reset_coords(drop=True)], "step", join="outer", coords="minimal"
            )
    factor = ceil(max(found.sizes["y"], found.sizes["x"]) / LONGEST_SIDE)
    if factor > 1:
        found = found.coarsen(y=factor, x=factor, boundary="trim").mean()
    pixels = (found.reset_coords(drop=True).load().clip(0, 1) * 255).round().astype(np.uint8)
    name = "expected clean image" if "step" in pixels.dims else "final image"
    return pixels.assign_attrs(long_name=name, units="1/255")


def _names(chosen: xr.Dataset) -> list[str]:
    """Tell what the recording says of every sample: `label 3, seed 0`; `draw` only where samples share a seed's."""
    alone = "draws" in chosen.coords and bool((chosen["draws"] == 1).all())
    silent = {"sample", "draw", "draws"} if alone else {"sample"}
    told = [name for name, coord in chosen.coords.items() if coord.dims == ("sample",) and name not in silent]
    told.sort(key=str)
    columns = [[f"{name} {value}" for value in chosen[name].values.tolist()] for name in told]
    return [", ".join(row) for row in zip(*columns, strict=True)] if told else [""] * chosen.sizes["sample"]


def _limits(values: np.ndarray) -> tuple[float, float]:
    above = values[values > 0]
    if not above.size:
        return 1e-6, 1.0
    low, high = (float(bound) for bound in np.percentile(above, (1, 99)))
    return (low, high) if high > low * 1.01 else (low / 2, low * 2)


def _title(recording: xr.Dataset) -> str:
    try:
        told = json.loads(recording.attrs["configuration"])
        return f"{told['model']}, {told['policy']['class']}, {told['mode']}"
    except (KeyError, TypeError, ValueError):
        return str(recording.attrs.get("title", "recording"))


def _plain(data: xr.Dataset) -> list[int]:
    order, shift = data["order"].values, data["shift"].values
    return [min(np.flatnonzero(order == m).tolist(), key=lambda p: float(shift[p])) for m in np.unique(order)]
