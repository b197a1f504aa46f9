"""Axes of a sweep as one types them: `interval=4,6,8`, `orders=0+1+2,0+1`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from tapstudy.bench.methods import find_method
from tapstudy.bench.sweep.cells import SETTINGS, check_setting


def parse_axes(texts: Iterable[str], *, option: str = "--axis") -> dict[str, list[Any]]:
    """Read settings and their values, which stand between commas; lists are joined by `+`.

    Args:
        option: of the command line, to name in messages.

    Raises:
        TypeError: an unknown setting.
        ValueError: not `name=value,...`, a value of the wrong kind, or a setting or value that comes twice.
    """
    axes: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not values:
            raise ValueError(f"{option} must be name=value,value,..., got {text!r}")
        check_setting(name, SETTINGS)
        if name in axes:
            raise ValueError(f"{option} {name} comes twice: give all its values at once")
        axes[name] = [_parse(name, value.strip(), option) for value in values.split(",")]
        if len({str(value) for value in axes[name]}) < len(axes[name]):
            raise ValueError(f"{option} {name}: a value comes twice in {values!r}")
    return axes


def _parse(name: str, value: str, option: str) -> Any:
    if name in _WORDS:
        if name == "method":
            find_method(value)
        return value
    try:
        return _KINDS.get(name, int)(value)
    except (ValueError, AttributeError):
        raise ValueError(f"{option} {name}: {value!r} is not {_WANTED.get(name, 'an integer')}") from None


def _numbers(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    return lambda text: tuple(kind(part) for part in text.split("+"))


def _full_steps(text: str) -> tuple[int, ...] | None:
    return None if text == "none" else _numbers(int)(text)


def _clip(text: str) -> str | None:
    return None if text == "none" else text


def _dtype(text: str) -> torch.dtype:
    found = getattr(torch, text)
    if not isinstance(found, torch.dtype):
        raise ValueError(text)
    return found


# every other setting is an integer
_WORDS = {"method", "model", "distance", "residual", "differences", "basis", "granularity"}
_KINDS: dict[str, Callable[[str], Any]] = {
    "guidance": float,
    "smooth_time": float,
    "orders": _numbers(int),
    "shifts": _numbers(float),
    "full_steps": _full_steps,
    "clip": _clip,
    "history_dtype": _dtype,
    "probe_dtype": lambda text: None if text == "none" else _dtype(text),
}
_WANTED = {
    "guidance": "a number",
    "smooth_time": "a number",
    "orders": "orders joined by +, as in 0+1+2",
    "shifts": "shifts joined by +, as in 0+0.5+1",
    "full_steps": "steps joined by +, as in 0+1+2+10, or none",
    "history_dtype": "a torch dtype such as float32 or bfloat16",
    "probe_dtype": "a torch dtype such as bfloat16, or none for the model's",
}
