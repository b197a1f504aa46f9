"""Modules that need not run at a skip step, since neither the probe nor the tail reads what they give.

Text projections, refiners and modulation of the text, rotary tables: blocks read them, and at a skip step no block
comes further than the first modulation of the image. Such a module then hands out zeros of the shape its output had at
the last full step, which takes no memory (one number, repeated). That is exact, not an approximation; `tapstudy.check`
proves it for a model by handing out NaN instead.

Other modules depend on one argument that stays the same along a run, such as embedders of the guidance scale and of
pooled text. What they give is read, so they hand out again what they gave at the last full step.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.trajectory import alike, same_value

if TYPE_CHECKING:
    from tapstudy.instrument.adapters import Adapter
    from tapstudy.instrument.call import Call


def idle_modules(model: nn.Module, paths: Collection[str]) -> dict[str, nn.Module]:
    """The modules at these paths by path, of a list every entry; without those that this model has as None.

    Raises:
        AttributeError: the model has nothing of that name.
    """
    found: dict[str, nn.Module] = {}
    for path in paths:
        module = _named(model, path)
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


def constant_modules(model: nn.Module, constant: Collection[tuple[str, str]]) -> dict[str, nn.Module]:
    """The modules that these pairs of a path and an argument name, by path; without those that this model lacks.

    Raises:
        AttributeError: the model has not even the parent of one.
    """
    modules = {path: _named(model, path, None) for path, _ in constant}
    return {path: module for path, module in modules.items() if module is not None}


def _named(model: nn.Module, path: str, *default: Any) -> Any:
    """What the parent of a path holds under its last name, which may be None."""
    parent, _, name = path.rpartition(".")
    return getattr(model.get_submodule(parent), name, *default)


def hand_out(call: Call, adapter: Adapter, arguments: Mapping[str, Any]) -> None:
    """Decide what modules of this pass hand out instead of running: what they gave at the last full step, or blanks.

    The shapes inside the pass must be known to be the same. A pass that may still turn into a full one needs what idle
    modules give, and a gradient needs all. Of constants the one argument they depend on must be unchanged.
    """
    run, constant = call.run, dict(adapter.constant)
    if not (adapter.idle or constant):
        return
    call.described = describe(arguments, (adapter.latent, adapter.timestep))
    call.kept = {name: keep(arguments.get(name)) for name in constant.values()}
    if not call.skips or torch.is_grad_enabled() or not same_description(run.described, call.described):
        return
    if call.certain:
        call.blanks = {path: list(outputs) for path, outputs in run.blanks.items()}
    call.constants = {
        path: list(outputs)
        for path, outputs in run.constants.items()
        if alike(run.kept[constant[path]], arguments.get(constant[path]), _certainly_equal)
    }


def keep_outputs(call: Call, adapter: Adapter, fill: float) -> None:
    """Keep what this full pass has shown for the skip steps to come."""
    constant, run = dict(adapter.constant), call.run
    run.described, run.kept = call.described, call.kept
    run.constants = {path: _detached(outputs) for path, outputs in call.outputs.items() if path in constant}
    run.blanks = blank({path: outputs for path, outputs in call.outputs.items() if path not in constant}, fill)


def _detached(output: Any) -> Any:
    """The same values without the graph that made them, which would keep a whole pass in memory."""
    if isinstance(output, Tensor):
        return output.detach()
    if isinstance(output, dict):
        return {name: _detached(part) for name, part in output.items()}
    if isinstance(output, list | tuple) and type(output) in (list, tuple):
        return type(output)(map(_detached, output))
    return output


@dataclass(frozen=True, eq=False)
class Untouched:
    """A tensor on an accelerator: certainly the same only if it is this object and nobody has written to it since."""

    tensor: Tensor
    version: int | None

    def still(self, given: Any) -> bool:
        return given is self.tensor and self.version is not None and self.version == given._version


def keep(value: Any) -> Any:
    """What tells later, without waiting for an accelerator, whether an argument is certainly the same as now.

    Tensors in host memory are copied, for their values cost nothing to compare: only name arguments that are small.
    """
    if isinstance(value, Tensor):
        if value.device.type == "cpu":
            return value.detach().clone()
        return Untouched(value, None if value.is_inference() else value._version)
    if isinstance(value, Mapping):
        return {name: keep(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [keep(part) for part in value]
    return value


def _certainly_equal(held: Any, given: Any) -> bool:
    return held.still(given) if isinstance(held, Untouched) else _equal(held, given)


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
