"""Where the tokens of the image are in what goes through a transformer, and which calls must run in full.

Functions for the rows of the adapter table, and for a row of your own (docs/your_own_class.md): token grids and tokens
of reference images, of (model, forward arguments by name); starts of the image tokens and reasons to run in full, of
the arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from torch import Tensor

Grid = tuple[int, int, int]
Arguments = Mapping[str, Any]
Start = int | Sequence[int]

# Token grids


def one_row(model: Any, arguments: Arguments, *, latent: str = "hidden_states") -> Grid:
    """All tokens of the image in one row, for a row of the table that names no grid.

    Packed tokens count as they are. A latent with rows and columns is cut by `config.patch_size`, so its grid is known.

    Raises:
        ValueError: neither is the case.
    """
    given = arguments[latent]
    if isinstance(given, Tensor) and given.ndim == 3:
        return 1, 1, given.shape[1]
    if isinstance(given, Tensor) and given.ndim in (4, 5) and hasattr(getattr(model, "config", None), "patch_size"):
        return (image if given.ndim == 4 else video)(model, {"hidden_states": given})
    raise ValueError(
        f"the adapter names no grid, and {latent} is not packed tokens, nor a latent that a patch_size of the "
        "configuration cuts: give the Adapter a grid, such as one of tapstudy.instrument.layouts"
    )


def image(model: Any, arguments: Arguments) -> Grid:
    """Latent (..., row, column) cut into square patches."""
    height, width = arguments["hidden_states"].shape[-2:]
    return 1, height // model.config.patch_size, width // model.config.patch_size


def video(model: Any, arguments: Arguments) -> Grid:
    """Latent (batch, channel, frame, row, column)."""
    patch = model.config.patch_size
    pt, ph, pw = patch if isinstance(patch, tuple | list) else (model.config.get("patch_size_t") or 1, patch, patch)
    frames, height, width = arguments["hidden_states"].shape[2:]
    return frames // pt, height // ph, width // pw


def frames_first(model: Any, arguments: Arguments) -> Grid:
    """Latent (batch, frame, channel, row, column)."""
    frames = arguments["hidden_states"].shape[1] // (model.config.patch_size_t or 1)
    return frames, *image(model, arguments)[1:]


def items(model: Any, arguments: Arguments) -> Grid:
    """Latent (batch, channel, frame, row, column), or (batch, item, channel, ...), of which the last item is made."""
    latent = arguments["hidden_states"]
    made = latent[:, -1] if latent.ndim == 6 else latent
    return video(model, {**arguments, "hidden_states": made})


def position_ids(model: Any, arguments: Arguments) -> Grid:
    """Packed tokens with ids (image, row, column, ...), of which only the order counts: they may be any numbers.

    Ids that do not run along the rows of a rectangle make one long row.
    """
    ids = _made_image(arguments)  # (N, 3 or 4)
    row, column = ids[:, 1], ids[:, 2]
    width = int((row == row[0]).cumprod(dim=0).sum())  # of the first run of tokens in the same row
    if len(ids) % width:
        return 1, 1, len(ids)
    rows, columns = row.view(-1, width), column.view(-1, width)
    even = bool((rows == rows[:, :1]).all()) and bool((columns == columns[:1]).all())
    return (1, len(rows), width) if even else (1, 1, len(ids))


def _made_image(arguments: Arguments) -> Tensor:
    """Ids of the image being made, (token, 3 or 4): it comes first, and references carry another image number.

    Image numbers that come back later tell no image from another; then all tokens count.
    """
    ids = arguments["img_ids"]
    ids = (ids[0] if ids.ndim == 3 else ids).cpu()
    same = ids[:, 0] == ids[0, 0]
    count = int(same.cumprod(dim=0).sum())
    return ids[:count] if count == int(same.sum()) else ids


def other_ids(model: Any, arguments: Arguments) -> int:
    return arguments["img_ids"].shape[-2] - len(_made_image(arguments))


def image_shapes(model: Any, arguments: Arguments) -> Grid:
    """Packed tokens with a list of (frames, rows, columns): the target first, then references."""
    shapes = _shapes(arguments)
    if not isinstance(shapes[0], Sequence):
        return tuple(shapes)
    # layered models make several images of one size at once; only the last shape is the reference
    layers = len(shapes) - 1 if model.config.get("use_layer3d_rope") else 1
    return layers * shapes[0][0], *shapes[0][1:]


def other_shapes(model: Any, arguments: Arguments) -> int:
    shapes = _shapes(arguments)
    if not isinstance(shapes[0], Sequence):
        return 0
    return sum(map(prod, shapes)) - prod(image_shapes(model, arguments))


def _shapes(arguments: Arguments) -> Sequence[Any]:
    """Of one sample: one shape, or a list of them."""
    first = arguments["img_shapes"][0]
    return arguments["img_shapes"] if isinstance(first, int) else first


def given_sizes(model: Any, arguments: Arguments) -> Grid:
    """Packed tokens with their numbers of frames, rows and columns; one long row where those are not all there is."""
    tokens = arguments["hidden_states"].shape[1]
    sizes = [arguments.get(name) for name in ("num_frames", "height", "width")]
    frames, height, width = (int(size or 0) for size in sizes)
    return (frames, height, width) if frames * height * width == tokens else (1, 1, tokens)


def listed(model: Any, arguments: Arguments) -> Grid:
    """A list of samples (channel, frame, row, column), or a list of lists of images of which the last is made."""
    first = arguments["x"][0]
    return _patches((first[-1] if isinstance(first, list) else first).shape, arguments)


def _patches(shape: Sequence[int], arguments: Arguments) -> Grid:
    patch = arguments.get("patch_size", 2)
    return shape[1] // arguments.get("f_patch_size", 1), shape[2] // patch, shape[3] // patch


# Text in front of the image


def after_text(arguments: Arguments) -> int:
    """[text, image]"""
    return arguments["encoder_hidden_states"].shape[1]


def after_registers(arguments: Arguments) -> int:
    """[8 register tokens, text, image]"""
    return 8 + after_text(arguments)


def after_captions(arguments: Arguments) -> list[int]:
    """[caption without padding, image, padding], another length in every sample."""
    return arguments["encoder_attention_mask"].sum(dim=1).tolist()


def after_conditions(arguments: Arguments) -> Start:
    """[image, caption], or in omni mode [captions, references, image, ...], each padded to a multiple of 32."""
    if not isinstance(arguments["x"][0], list):
        return 0
    lengths = [
        [len(caption) for caption in captions]
        + [32 if image is None else prod(_patches(image.shape, arguments)) for image in images[:-1]]
        for images, captions in zip(arguments["x"], arguments["cap_feats"], strict=True)
    ]
    return [sum(-(-length // 32) * 32 for length in sample) for sample in lengths]


# Calls that only work in full


def skip_layers(arguments: Arguments) -> str | None:
    return "skip_layers" if arguments.get("skip_layers") is not None else None


def fills_cache(arguments: Arguments) -> str | None:
    return "kv_cache_mode='extract'" if arguments.get("kv_cache_mode") == "extract" else None


def fills_caches(arguments: Arguments) -> str | None:
    caches = arguments.get("kv_caches")
    return "kv_caches being written" if caches is not None and caches[0].mode == "write" else None


def moves_frames_apart(arguments: Arguments) -> str | None:
    return "enable_diffusion_forcing" if arguments.get("enable_diffusion_forcing") else None


def uneven(arguments: Arguments) -> str | None:
    samples = [sample[-1] if isinstance(sample, list) else sample for sample in arguments["x"]]
    return "samples of different sizes" if len({sample.shape for sample in samples}) > 1 else None
