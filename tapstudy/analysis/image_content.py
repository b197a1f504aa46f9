"""What each token shows in the final image: brightness, gradient, texture, background or not."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import sobel, uniform_filter

from tapstudy.analysis.require import require
from tapstudy.analysis.result import described, lazily, means, shares

Array = NDArray[np.floating]
Starts = NDArray[np.integer]

CLASSES = ("background", "edge", "interior")


def image_content(recording: xr.Dataset) -> xr.Dataset:
    """Content of the pixels behind every token, lazily.

    Gray values are the mean over bands. Per token, means over its patch of pixels (and frames of a video):
    `brightness`; `gradient`, the norm of the spatial gradient (Sobel's operator); `texture`, the standard deviation in
    a window of the patch size around a pixel, at least 3 wide.

    `foreground`: brightness on the bright side of Otsu's threshold (Otsu 1979: the cut that leaves most variance
    between the two sides) over the tokens of its image. `token_class`: `edge` where the gradient lies above its own
    Otsu threshold; other tokens are `interior` in the foreground and `background` outside. With an image of one gray
    value everything is background.

    Args:
        recording: with `image` (sample, y, x, band) or `video` (sample, time, y, x, band) in [0, 1], and `row`, `col`
            (and `frame`) on token.

    Returns:
        Dims (..., token), every leading dimension of the image kept. `token_class` has the CF attributes
        `flag_values` and `flag_meanings`.

    Raises:
        ValueError: neither image nor video, no grid, or pixels that the grid does not divide.
    """
    name = next((name for name in ("image", "video") if name in recording), None)
    if name is None:
        raise ValueError(
            "image_content needs image or video, and the dataset has neither: record with fields=['image']"
        )
    core = (["time"] if name == "video" else []) + ["y", "x", "band"]
    require(recording, "image_content", **{name: core, "row": ("token",), "col": ("token",)})
    row, col = (recording[dim].values.astype(int) for dim in ("row", "col"))
    frame = recording["frame"].values.astype(int) if "frame" in recording.coords else np.zeros_like(row)
    if name == "image" and frame.any():
        raise ValueError(f"image_content: tokens of {frame.max() + 1} frames, but a single image: record the video")
    place = (frame, row, col)
    starts = tuple(
        _starts(axis, recording.sizes[axis] if axis in core else 1, int(index.max()) + 1)
        for axis, index in zip(("time", "y", "x"), place, strict=True)
    )

    def content(image: Array) -> tuple[NDArray[Any], ...]:
        film = image.astype(np.float64).mean(axis=-1)  # (time, y, x), or (y, x)
        found = _content(film.reshape(-1, *film.shape[-2:]), starts)
        return tuple(values[place] for values in found)  # (token,) each

    texts = {
        "brightness": "mean brightness of the token's pixels",
        "gradient": "spatial gradient of brightness",
        "texture": "local standard deviation of brightness",
        "foreground": "brightness beyond Otsu's threshold of the image",
        "token_class": "content class",
    }
    types = [np.float32, np.float32, np.float32, np.bool_, np.int8]
    found = lazily(
        content, recording[name].chunk(dict.fromkeys(core, -1)), core=(" ".join(core),), out=["token"] * len(texts),
        dtypes=types, sizes={"token": len(row)}, vectorize=True,
    )  # fmt: skip
    grid = {dim: recording[dim] for dim in ("row", "col", "frame") if dim in recording.coords}
    result = described({
        key: (values, text, "1 / pixel" if key == "gradient" else "1")
        for values, (key, text) in zip(found, texts.items(), strict=True)
    }).assign_coords(grid)  # fmt: skip
    result["token_class"].attrs |= {
        "flag_values": np.arange(len(CLASSES), dtype=np.int8),
        "flag_meanings": " ".join(CLASSES),
    }
    return result


def content_summary(found: xr.Dataset) -> xr.Dataset:
    """Of `image_content`: means of what is measured, and how often each class comes."""
    foreground = found["foreground"].astype(np.float32).assign_attrs(long_name="share of the tokens", units="1")
    of_classes = shares(found["token_class"], dict(enumerate(CLASSES)), dim="class", long_name="share of the tokens")
    measured = found[["brightness", "gradient", "texture"]].assign(foreground=foreground)
    return means(measured, *map(str, measured.data_vars)).assign(class_share=of_classes)


def _starts(axis: str, size: int, count: int) -> Starts:
    """First pixel (or frame) of each of `count` equal parts. Causal video codecs give the first token one frame."""
    if size % count == 0:
        return np.arange(count) * (size // count)
    if axis == "time" and count > 1 and (size - 1) % (count - 1) == 0:
        return np.r_[0, 1 + np.arange(count - 1) * ((size - 1) // (count - 1))]
    raise ValueError(f"image_content: {size} pixels along {axis} do not divide into {count} tokens")


def _content(film: Array, starts: tuple[Starts, ...]) -> tuple[NDArray[Any], ...]:
    """Film (time, y, x) -> five arrays (frame, row, col)."""
    patch = film.shape[-1] // len(starts[-1])
    window = (1, *(max(3, patch),) * 2)
    mean = uniform_filter(film, window, mode="nearest")
    variance = uniform_filter(film**2, window, mode="nearest") - mean**2
    # Sobel's weights add up to 8 times a central difference over one pixel
    slopes = [np.hypot(sobel(frame, axis=0, mode="nearest"), sobel(frame, axis=1, mode="nearest")) for frame in film]
    gradient = np.stack(slopes) / 8
    brightness, slope, texture = (
        _pool(values, starts) for values in (film, gradient, np.sqrt(np.maximum(variance, 0)))
    )
    foreground = brightness > otsu_threshold(brightness)
    edge = slope > otsu_threshold(slope)
    token_class = np.where(edge, CLASSES.index("edge"), np.where(foreground, CLASSES.index("interior"), 0))
    return brightness.astype("f4"), slope.astype("f4"), texture.astype("f4"), foreground, token_class.astype("i1")


def _pool(film: Array, starts: tuple[Starts, ...]) -> Array:
    """Means over the blocks that begin at `starts` along every axis."""
    for axis, first in enumerate(starts):
        lengths = np.diff(np.r_[first, film.shape[axis]])
        shape = [-1 if i == axis else 1 for i in range(film.ndim)]
        film = np.add.reduceat(film, first, axis=axis) / lengths.reshape(shape)
    return film


def otsu_threshold(values: Array) -> float:
    """The value up to which (included) `values` form the lower of two classes with most variance between them.

    Over all cuts between distinct values, no histogram; the largest value, so that nothing lies above, if all are
    equal. N. Otsu, "A threshold selection method from gray-level histograms", 1979.
    """
    ordered = np.sort(values, axis=None)
    cuts = np.flatnonzero(np.diff(ordered) > 0) + 1  # sizes of the lower class
    if not len(cuts):
        return float(ordered[-1])
    sums = np.cumsum(ordered)
    lower, upper = sums[cuts - 1] / cuts, (sums[-1] - sums[cuts - 1]) / (len(ordered) - cuts)
    between = cuts * (len(ordered) - cuts) * (upper - lower) ** 2
    return float(ordered[cuts[between.argmax()] - 1])
