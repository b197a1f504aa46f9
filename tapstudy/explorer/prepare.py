"""A few samples of a recording, loaded and laid out on the token grid: what the page draws."""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from math import ceil
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.analysis.caption import kind_of
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
            coordinates `row` and `col` (`frame`) on token. `probe`, previews, `latent`, `image` and `video` are used
            if there.
        samples: positions in the recording; the first four when None.

    Returns:
        In memory: the scores and the layers of `explorer_layers`, (sample, context, step, token[, predictor]), tokens
        sorted by frame, row and column, context `cond` first; `image` (sample, step, [frame,] y, x, band) uint8, the
        expected clean image at every step, or without `step` the final one, a picture for every frame of tokens;
        coordinates `number` and `name` on sample; the attributes `grid` (frames, rows, columns), `title`, `plain`
        (for every order, the predictor with the smallest shift) and `opens` (place of the step to open on: the skip
        step at which choices are spread most).
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
    images = _images(chosen, frames=grid[0])
    scored = xr.merge([chosen[[*RECORDED]], explorer_layers(chosen)], compat="override").reset_coords(drop=True)
    if "context" not in scored.dims:
        scored = scored.expand_dims(context=["all"])
    contexts = sorted(range(scored.sizes["context"]), key=lambda i: str(scored["context"].values[i]) != "cond")
    data = scored.isel(context=contexts).transpose(*CANONICAL).load()
    if images is not None:
        data["image"] = images
    kept = [name for name in ("sigma", "timestep", "order", "shift", "row", "col", "frame") if name in chosen.coords]
    data = data.assign_coords({name: chosen[name].load() for name in kept})
    data = data.assign_coords(number=("sample", numbers), name=("sample", _names(chosen)))
    for variable in data.data_vars.values():
        if variable.dtype.kind == "f":
            low, high = _limits(variable.values)
            variable.attrs |= {"low": low, "high": high}
    return data.assign_attrs(grid=grid, title=_title(recording), plain=_plain(data), opens=_opening(data))


def prepare_pair(
    recording: xr.Dataset, beside: xr.Dataset, *, samples: Sequence[int] | None = None
) -> tuple[xr.Dataset, xr.Dataset]:
    """Load two recordings to be looked at side by side: the samples that both have, on one scale of colours.

    Args:
        recording: as `prepare` takes it.
        beside: another of the same model, steps and contexts, such as one under another policy.
        samples: positions in the first; the first four that both have when None.

    Raises:
        ValueError: as `prepare` does; no sample with the same label and seed, or other steps, contexts or tokens.
    """
    names, others = (_names(one if "sample" in one.dims else one.expand_dims("sample")) for one in (recording, beside))
    both = [i for i, name in enumerate(names) if name in others]
    wanted = both[:DEFAULT_SAMPLES] if samples is None else _known(samples, len(names))
    if lacking := [names[i] for i in wanted if i not in both] or ([] if both else names[:1]):
        raise ValueError(
            f"explore: the recording beside has no sample ({lacking[0]}): it has {'; '.join(others[:5])}. Side by side "
            "are samples of the same label or prompt, and seed"
        )
    pair = prepare(recording, samples=wanted), prepare(beside, samples=[others.index(names[i]) for i in wanted])
    for what, values in (
        ("token grids", [one.attrs["grid"] for one in pair]),
        ("steps", [one["step"].values.tolist() for one in pair]),
        ("contexts", [one["context"].values.tolist() for one in pair]),
    ):
        if values[0] != values[1]:
            raise ValueError(f"explore: side by side the {what} must be the same, got {values[0]} and {values[1]}")
    for name in pair[0].data_vars.keys() & pair[1].data_vars.keys():
        ends = [one[name].attrs for one in pair]
        if all("low" in one for one in ends):
            shared = {"low": min(one["low"] for one in ends), "high": max(one["high"] for one in ends)}
            for one in ends:
                one.update(shared)
    return pair


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


def _images(chosen: xr.Dataset, *, frames: int) -> xr.DataArray | None:
    """Return images, uint8: at every step where previews or latents tell, else the final one, or none.

    Args:
        frames: of the tokens; each has the picture at its place in the video.
    """
    if (formed := next((name for name in ("preview", "preview_video") if name in chosen), None)) is not None:
        # between two previews, the one before
        before = np.searchsorted(chosen["preview_step"].values, chosen["step"].values, side="right") - 1
        pictures = chosen[formed].isel(preview_step=xr.DataArray(before.clip(0), dims="step")).reset_coords(drop=True)
        found = pictures.rename(preview_y="y", preview_x="x")
    elif (final := next((name for name in ("image", "video") if name in chosen), None)) is not None:
        found = _from_latents(chosen, chosen[final].reset_coords(drop=True))
    else:
        return None
    if "time" in found.dims:
        found = found.isel(time=np.linspace(0, found.sizes["time"] - 1, frames).round().astype(int)).rename(
            time="frame"
        )
    found = found.transpose("sample", *(dim for dim in ("step", "frame") if dim in found.dims), "y", "x", "band")
    factor = ceil(max(found.sizes["y"], found.sizes["x"]) / LONGEST_SIDE)
    if factor > 1:
        found = found.coarsen(y=factor, x=factor, boundary="trim").mean()
    found = found.load()
    if found.dtype.kind == "f" and formed is None:
        found = found.clip(0, 1) * 255
    name = "expected clean image" if "step" in found.dims else "final image"
    return found.round().astype(np.uint8).drop_vars("step", errors="ignore").assign_attrs(long_name=name, units="1/255")


def _from_latents(chosen: xr.Dataset, final: xr.DataArray) -> xr.DataArray:
    """Return the expected clean images of all steps, where the latent is the image in patches, else the final one."""
    if "latent" not in chosen or "time" in final.dims:
        return final
    try:
        forming = clean_images(chosen).reset_coords(drop=True)  # all steps but the last, which expects the final image
    except ValueError:
        return final
    last = final.expand_dims(step=chosen["step"].values[-1:], axis=1)
    return xr.concat([forming, last], "step", join="outer", coords="minimal")


def _opening(data: xr.Dataset) -> int:
    """Find the skip step at which the choices of the first context differ most, and among equals the errors do."""
    choice, error = data["choice"].isel(context=0).values, data["chosen_error"].isel(context=0).values
    found, best = 0, (-1.0, -1.0)
    for step in range(data.sizes["step"]):
        spread = []
        for sample in range(data.sizes["sample"]):
            chosen, errors = choice[sample, step], error[sample, step]
            if (chosen >= 0).all():
                shares = np.unique(chosen, return_counts=True)[1] / len(chosen)
                spread.append((-(shares * np.log(shares)).sum(), errors.std() / max(errors.mean(), 1e-30)))
        if spread:
            entropy, uneven = np.mean(spread, axis=0)
            found, best = max((found, best), (step, (round(float(entropy), 3), float(uneven))), key=lambda one: one[1])
    return found


def _names(chosen: xr.Dataset) -> list[str]:
    """Tell what the recording says of every sample: `label 3, seed 0`; `draw` only where samples share a seed's."""
    alone = "draws" in chosen.coords and bool((chosen["draws"] == 1).all())
    silent = {"sample", "draw", "draws"} if alone else {"sample"}
    told = [name for name, coord in chosen.coords.items() if coord.dims == ("sample",) and name not in silent]
    told.sort(key=str)
    columns = [[f"{_word(name, value)} {value}" for value in chosen[name].values.tolist()] for name in told]
    return [", ".join(row) for row in zip(*columns, strict=True)] if told else [""] * chosen.sizes["sample"]


def _word(name: Hashable, value: Any) -> str:
    return kind_of(value) if name == "label" else str(name)


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
