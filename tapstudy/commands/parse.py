"""Reads option values."""

from __future__ import annotations

import math
from typing import Any

LABELS = "labels between commas, or prompts between semicolons; the first ten by default"


def numbers(text: str, kind: type[int] | type[float], option: str) -> tuple[Any, ...]:
    """Return finite numbers separated by commas; raises ValueError naming the option."""
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{option} must be numbers separated by commas, got {text!r}")
    return found


def find_dtype(name: str, option: str) -> Any:
    """Return the floating torch dtype of that name.

    Raises ValueError on another name, naming the option.
    """
    import torch

    names = ("float32", "bfloat16", "float16", "float64")
    if name not in names:
        raise ValueError(f"{option} must be one of {', '.join(names)}, got {name!r}")
    return getattr(torch, name)
