"""Check settings, naming the one that is invalid."""

from __future__ import annotations

from typing import Any


def check_integer(name: str, value: object, least: int) -> None:
    """Raise TypeError unless the value is an integer, ValueError if it is below `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    check_least(name, value, least)


def check_least(name: str, value: float, least: float) -> None:
    """Raise ValueError if the value is below `least`, or no number."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_between(name: str, value: float, least: float, most: float) -> None:
    """Raise ValueError if the value is below `least` or above `most`, or no number."""
    if not least <= value <= most:
        raise ValueError(f"{name} must lie in [{least}, {most}], got {value}")


def unique(name: str, values: object) -> tuple[Any, ...]:
    """Return the values as a tuple; raise TypeError for no sequence, ValueError if it is empty or repeats a value."""
    if isinstance(values, str) or not hasattr(values, "__iter__"):
        raise TypeError(f"{name} must be a sequence of numbers, got {values!r}")
    found = tuple(values)
    if not found:
        raise ValueError(f"{name} must not be empty")
    if len(set(found)) < len(found):
        raise ValueError(f"{name} must not repeat a value, got {found}")
    return found
