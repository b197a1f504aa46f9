"""Compare the configurations of two recordings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tapstudy.recording.inputs import HASH, is_description

MOST = 5  # differences told


def tell_differences(held: Any, asked: Any) -> list[str]:
    """Tell where two configurations differ, such as `call 1, image: ... there, ... asked`; nothing where they agree."""
    found = _differences(held, asked, "")
    return [*found[:MOST], f"and {len(found) - MOST} more"] if len(found) > MOST else found


def _differences(held: Any, asked: Any, where: str) -> list[str]:
    if held == asked:
        return []
    if isinstance(held, Mapping) and isinstance(asked, Mapping) and not (is_description(held) or is_description(asked)):
        names = sorted(held.keys() | asked.keys())
        return [
            text
            for name in names
            for text in _differences(held.get(name), asked.get(name), f"{where}, {name}" if where else name)
        ]
    if isinstance(held, list) and isinstance(asked, list) and len(held) == len(asked) and where == "calls":
        return [text for i in range(len(held)) for text in _differences(held[i], asked[i], f"call {i}")]
    if _holds_input(held) and isinstance(asked, list) and len(held) == len(asked):
        return [text for i in range(len(held)) for text in _differences(held[i], asked[i], f"{where}[{i}]")]
    return [f"{where}: {_short(held)} there, {_short(asked)} asked"]


def _holds_input(value: Any) -> bool:
    return isinstance(value, list) and any(is_description(one) or _holds_input(one) for one in value)


def _short(value: Any) -> str:
    if is_description(value):
        size = " x ".join(map(str, value["shape"]))
        return f"{value['input']} {size} {value.get('mode') or value['dtype']} of {HASH} {value[HASH][:12]}"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
