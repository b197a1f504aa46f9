"""Keep images, arrays and tensors that a call is given: described and hashed for JSON, and made again from arrays."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

HASH = "sha256"
# of PIL; as arrays they keep all that they hold, unlike indices into a palette
MODES = ("1", "L", "LA", "RGB", "RGBA", "I", "I;16", "F")
NUMBERS = "biufc"  # kinds of numpy dtypes


def describe_inputs(value: Any, where: str, found: dict[str, NDArray[Any]]) -> Any:
    """Describe a call as JSON could hold it; an image, array or tensor, at any depth, by its kind, size and hash.

    Args:
        where: named in errors, such as "call 0, image".
        found: takes what the descriptions stand for, by hash.

    Raises:
        TypeError: what is none of these, nor such that JSON could hold it.
        ValueError: an image of a mode that an array does not keep.
    """
    if isinstance(value, Mapping):
        return {str(name): describe_inputs(one, f"{where}, {name}", found) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [describe_inputs(one, f"{where}[{i}]", found) for i, one in enumerate(value)]
    if not isinstance(value, Image.Image | np.ndarray | Tensor):
        try:
            json.dumps(value)
        except TypeError:
            raise TypeError(
                f"{where}: a recording tells how it was made, so it takes what JSON could hold, images, arrays and "
                f"tensors, got {type(value).__name__}"
            ) from None
        return value
    array, description = _as_array(value, where)
    header = json.dumps([array.dtype.str, array.shape]).encode()
    key = hashlib.sha256(header + array.tobytes()).hexdigest()
    found[key] = array
    return {**description, "shape": list(array.shape), HASH: key}


def is_description(value: Any) -> bool:
    """Tell whether a value of a configuration stands for an image, array or tensor."""
    return isinstance(value, Mapping) and {"input", "shape", HASH} <= set(value)


def restore_inputs(value: Any, arrays: Mapping[str, NDArray[Any]], where: str) -> Any:
    """Undo `describe_inputs`; raises KeyError, with `where` it was, for what `arrays` does not hold."""
    if isinstance(value, list):
        return [restore_inputs(one, arrays, f"{where}[{i}]") for i, one in enumerate(value)]
    if not isinstance(value, Mapping):
        return value
    if not is_description(value):
        return {name: restore_inputs(one, arrays, f"{where}, {name}") for name, one in value.items()}
    if value[HASH] not in arrays:
        raise KeyError(where)
    array = arrays[value[HASH]]
    if value["input"] == "image":
        return Image.fromarray(array)
    return torch.from_numpy(array).view(getattr(torch, value["dtype"])) if value["input"] == "tensor" else array


def _as_array(value: Image.Image | NDArray[Any] | Tensor, where: str) -> tuple[NDArray[Any], dict[str, str]]:
    if isinstance(value, Image.Image):
        if value.mode not in MODES:
            raise ValueError(f"{where}: an image of mode {value.mode!r} cannot be kept: use image.convert('RGB')")
        return np.array(value), {"input": "image", "mode": value.mode}
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().contiguous()
        try:
            array = tensor.numpy()
        except TypeError:  # numpy has no such dtype: the same bits as integers
            whole = {1: torch.uint8, 2: torch.int16}[tensor.element_size()]
            array = tensor.view(whole).numpy()
        return array.copy(), {"input": "tensor", "dtype": str(value.dtype).removeprefix("torch.")}
    if value.dtype.kind not in NUMBERS:
        raise TypeError(f"{where}: an array of dtype {value.dtype} holds no numbers")
    return value.astype(value.dtype.newbyteorder("="), order="C"), {"input": "array", "dtype": value.dtype.name}


def count_items(value: Any, dims: int) -> int:
    """Count the images (`dims` 3) or videos (4) of a pipeline's argument, as pipelines read it.

    Args:
        value: an image, an array or tensor of one or of several, or a list of such; a list of images is one video.
    """
    if isinstance(value, list | tuple):
        frames = dims == 4 and value and not isinstance(value[0], list | tuple) and _dims(value[0]) < dims
        return 1 if frames else sum(count_items(one, dims) for one in value)
    return len(value) if _dims(value) > dims else 1


def _dims(value: Any) -> int:
    return 3 if isinstance(value, Image.Image) else getattr(value, "ndim", 0)
