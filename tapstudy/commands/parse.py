"""Reads option values."""

from __future__ import annotations

from typing import Any


def numbers(text: str, kind: type[int] | type[float], option: str) -> tuple[Any, ...]:
    """Numbers separated by commas; raises ValueError naming the option."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} must be numbers separated by commas, got {text!r}") from None
