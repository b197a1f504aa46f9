"""Whether a ControlNet (or anything else that a pipeline hands in for some of its steps) has a part in a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

Taking = frozenset[str]
_HOLDERS = (Mapping, list, tuple)


def taking_part(arguments: Mapping[str, Any]) -> Taking:
    """Return the names of the arguments that bring tensors into a call, without ControlNets' residuals that are zero.

    Where a ControlNet ends midway, or begins late, its residuals are left out from a step on, or multiplied by 0. What
    the blocks add then jumps, and a history from before the jump tells nothing of the steps behind it. To see a zero
    waits for the device, once in a call with such residuals.
    """
    taking = []
    for name, value in arguments.items():
        zero = "control" not in name
        if isinstance(value, Tensor) if zero and not isinstance(value, _HOLDERS) else _takes_part(value, zero=zero):
            taking.append(name)
    return frozenset(taking)


def _takes_part(value: Any, *, zero: bool) -> bool:
    """Tell whether there is a tensor in a tensor, list or mapping of such; with `zero` one of zeros counts as well."""
    if isinstance(value, Tensor):
        return zero or value.is_meta or bool(value.any())
    if isinstance(value, Mapping):
        value = [*value.values()]
    return isinstance(value, list | tuple) and any(_takes_part(part, zero=zero) for part in value)
