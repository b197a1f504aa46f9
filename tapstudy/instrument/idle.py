"""Modules that need not run at a skip step, since neither the probe nor the tail reads what they give.

Text projections, refiners and modulation of the text, rotary tables: blocks read them, and at a skip step no block
comes further than the first modulation of the image. Such a module then hands out zeros of the shape its output had at
the last full step, which takes no memory (one number, repeated). That is exact, not an approximation; `tapstudy.check`
proves it for a model by handing out NaN instead.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.trajectory import alike, same_value

if TYPE_CHECKING:
    from tapstudy.instrument.call import Call


def idle_modules(model: nn.Module, paths: Collection[str]) -> dict[str, nn.Module]:
    """The modules at these paths by path, of a list every entry; without those that this model has as None.

    Raises:
        AttributeError: the model has nothing of that name.
    """
    found: dict[str, nn.Module] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        module = getattr(model.get_submodule(parent), name)
        if isinstance(module, nn.ModuleList):
            found |= {f"{path}.{index}": child for index, child in enumerate(module)}
        elif module is not None:
            found[path] = module
    return found


def blank(output: Any, fill: float = 0.0) -> Any:
    """Something of the same structure, shapes, dtypes and devices. Integers and masks stay: code may branch on them."""
    if isinstance(output, Tensor):
        if not (output.is_floating_point() or output.is_complex()):
            return output
        return output.new_full((), fill, requires_grad=False).expand(output.shape)
    if isinstance(output, dict):
        return {name: blank(part, fill) for name, part in output.items()}
    if isinstance(output, list | tuple) and type(output) in (list, tuple):
        return type(output)(blank(part, fill) for part in output)
    return output


def let_idle(call: Call, inputs: dict[str, Any]) -> None:
    """Idle modules of this pass, whose arguments `inputs` describes, shall not run, if the shapes are known to fit.

    A pass that may still turn into a full one needs them, and so does the gradient of parameters in them.
    """
    call.inputs = inputs
    certain = call.skips and not call.undecided and not torch.is_grad_enabled()
    if certain and same_description(call.run.inputs, inputs):
        call.blanks = {path: list(outputs) for path, outputs in call.run.blanks.items()}


def describe(arguments: Mapping[str, Any], moving: Collection[str]) -> dict[str, Any]:
    """What decides the shapes inside a forward pass with these arguments, without holding on to their features.

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
    """Whether two passes have the same shapes inside. Only masks rebuilt from step to step wait for the device."""
    if held is None or held.keys() != given.keys():
        return False
    return all(alike(held[name], given[name], _equal) for name in given)


def _equal(held: Any, given: Any) -> bool:
    return same_value(held, given) or (isinstance(held, str | torch.dtype) and held == given)
