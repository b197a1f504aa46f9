"""Modules that need not run at a skip step, since neither the probe nor the tail reads what they give.

Text projections, refiners and modulation of the text, rotary tables: blocks read them, and at a skip step no block
comes further than the first modulation of the image. Such a module then hands out zeros of the shape its output had at
the last full step, which takes no memory (one number, repeated). That is exact, not an approximation; `tapstudy.check`
proves it for a model by handing out NaN instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.call import Call, Host
from tapstudy.instrument.places import Method
from tapstudy.instrument.trajectory import alike, same_value


def idle_modules(model: nn.Module, paths: Collection[str]) -> dict[str, nn.Module]:
    """Return the modules at these paths by path, of a list every entry; without those that this model has as None.

    A path that ends in "?" may be missing.

    Raises:
        AttributeError: the model has nothing of that name.
    """
    found: dict[str, nn.Module] = {}
    for path in paths:
        path, optional = path.removesuffix("?"), path.endswith("?")
        parent, _, name = path.rpartition(".")
        holder = model.get_submodule(parent)
        module = getattr(holder, name, None) if optional else getattr(holder, name)
        if isinstance(module, nn.ModuleList):
            found |= {f"{path}.{index}": child for index, child in enumerate(module)}
        elif module is not None:
            found[path] = module
    return found


def blank(output: Any, fill: float = 0.0) -> Any:
    """Make zeros of the same structure, shapes, dtypes, devices. Integers and masks stay: code may branch on them."""
    if isinstance(output, Tensor):
        if not (output.is_floating_point() or output.is_complex()):
            return output
        return output.new_full((), fill, requires_grad=False).expand(output.shape)
    if isinstance(output, dict):
        return {name: blank(part, fill) for name, part in output.items()}
    if isinstance(output, list | tuple) and type(output) in (list, tuple):
        return type(output)(blank(part, fill) for part in output)
    return output


class IdleHook:
    """On a module whose output neither the probe nor the tail reads: hands out blanks at a skip step.

    Inside a compiled graph the module always runs.
    """

    def __init__(self, instrument: Host, path: str) -> None:
        self.instrument, self.path = instrument, path

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = None if torch.compiler.is_compiling() else self.instrument.call
        blanks = call and call.blanks.get(self.path)
        if blanks:
            return blanks.pop(0)
        output = inner(*args, **kwargs)
        if call is not None:
            call.outputs.setdefault(self.path, []).append(output)
        return output


def hand_out(call: Call, adapter: Adapter, arguments: Mapping[str, Any]) -> None:
    """Decide whether idle modules hand out blanks in this pass.

    The shapes inside the pass must be known to be the same. A pass that may still turn into a full one needs what idle
    modules give, and a gradient needs all.
    """
    call.described = describe(arguments, (adapter.latent, adapter.timestep))
    if call.state == "skip" and not torch.is_grad_enabled() and same_description(call.run.described, call.described):
        call.blanks = {path: list(outputs) for path, outputs in call.run.blanks.items()}


def keep_blanks(call: Call) -> None:
    """Keep blanks of what idle modules gave in this full pass, for the skip steps to come."""
    call.run.described, call.run.blanks = call.described, blank(call.outputs)


def describe(arguments: Mapping[str, Any], moving: Collection[str]) -> dict[str, Any]:
    """Return what decides the shapes inside a forward pass with these arguments, without holding on to their features.

    Args:
        arguments: of the model's forward.
        moving: names of those that change from step to step, of which only shapes count.
    """
    return {name: _describe(value, name in moving) for name, value in arguments.items() if name != "self"}


def _describe(value: Any, moving: bool) -> Any:
    if isinstance(value, Tensor):
        # masks and indices may decide shapes by their values
        values = None if moving or value.is_floating_point() or value.is_complex() else value
        return tuple(value.shape), str(value.dtype), str(value.device), values
    if isinstance(value, list | tuple):
        return tuple(_describe(part, moving) for part in value)
    if isinstance(value, Mapping):
        return tuple((name, _describe(part, moving)) for name, part in value.items())
    return value


def same_description(held: Mapping[str, Any] | None, given: Mapping[str, Any]) -> bool:
    """Tell whether two passes have the same shapes inside. Only masks rebuilt from step to step wait for the device."""
    if held is None or held.keys() != given.keys():
        return False
    return all(alike(held[name], given[name], _equal) for name in given)


def _equal(held: Any, given: Any) -> bool:
    return same_value(held, given) or (isinstance(held, str | torch.dtype) and held == given)
