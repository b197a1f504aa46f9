"""Hooks on modules of which a skip step needs less than a full step, or nothing: what the model then saves by itself.

Next to no work of a skip step is the policy's: most of it is the model's own, on the way to the probe. A row of the
adapter table names the modules that can do with less.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tapstudy.instrument.idle import constant_modules, idle_modules
from tapstudy.instrument.partial import leading_product, patches_by_product
from tapstudy.instrument.places import Hook, Method

if TYPE_CHECKING:
    from tapstudy.instrument.call import Call
    from tapstudy.instrument.instrument import Instrument


def saving_hooks(instrument: Instrument, *, early: bool) -> Iterator[tuple[nn.Module, Hook]]:
    """The modules of the instrument's model that its row names, and a hook for each.

    Args:
        early: whether a skip step reads nothing of any block beyond the modulation of the first.

    Raises:
        AttributeError: the row names something that this model has not.
    """
    model, adapter = instrument.model, instrument.adapter
    if early:
        for path, module in idle_modules(model, adapter.idle).items():
            yield module, IdleHook(instrument, module, path)
        if adapter.modulation is not None:
            path, *share = adapter.modulation
            module = model.get_submodule(path)
            yield module, ModulationHook(instrument, module, *share)
    for path, module in constant_modules(model, adapter.constant).items():
        yield module, ConstantHook(instrument, module, path)
    for path in adapter.once:
        module = model.get_submodule(path)
        yield module, OnceHook(instrument, module, path)
    if adapter.patches is not None:
        module = model.get_submodule(adapter.patches)
        if isinstance(module, nn.Conv2d | nn.Conv3d):  # some models of a class cut patches in another way
            yield module, PatchHook(instrument, module)


class SavingHook:
    """Runs the module as it is, but where `save` finds less to do. Inside a compiled graph it always runs."""

    def __init__(self, instrument: Instrument, module: nn.Module) -> None:
        self.instrument, self.module = instrument, module

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = None if torch.compiler.is_compiling() else self.instrument.call
        return inner(*args, **kwargs) if call is None else self.save(call, inner, args, kwargs)

    def save(self, call: Call, forward: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError


class IdleHook(SavingHook):
    """On a module whose output neither the probe nor the tail reads: hands out blanks at a skip step."""

    def __init__(self, instrument: Instrument, module: nn.Module, path: str) -> None:
        super().__init__(instrument, module)
        self.path = path

    def save(self, call: Call, forward: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        blanks = call.blanks.get(self.path)
        if blanks:
            call.spared = True
            return blanks.pop(0)
        output = forward(*args, **kwargs)
        call.outputs.setdefault(self.path, []).append(output)
        return output


class ConstantHook(IdleHook):
    """On a module whose output stays the same until one argument of the model changes: hands it out at a skip step."""

    def save(self, call: Call, forward: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        known = call.constants.get(self.path)
        output = known.pop(0) if known and not self.module.training else forward(*args, **kwargs)
        call.outputs.setdefault(self.path, []).append(output)
        return output


class OnceHook(IdleHook):
    """On a module that the model calls again with the same arguments: runs it once in a skip step."""

    def save(self, call: Call, forward: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not call.skips or self.module.training:
            return forward(*args, **kwargs)
        given = (*args, *kwargs.items())
        held, output = call.repeated.get(self.path, ((), None))
        if len(held) == len(given) and all(map(_same_object, held, given)):
            return output
        output = forward(*args, **kwargs)
        call.repeated[self.path] = given, output
        return output


def _same_object(held: Any, given: Any) -> bool:
    if isinstance(held, tuple) and isinstance(given, tuple):
        return len(held) == len(given) and all(map(_same_object, held, given))
    return held is given


class ModulationHook(SavingHook):
    """On the linear layer that makes the first block's modulation: at a skip step the probe reads its first parts only.

    Args:
        read: how many parts.
        parts: of how many.
    """

    def __init__(self, instrument: Instrument, module: nn.Module, read: int, parts: int) -> None:
        super().__init__(instrument, module)
        self.read, self.parts = read, parts

    def save(self, call: Call, forward: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        fill = self.instrument.blank_value
        if not call.certain or len(args) != 1 or kwargs:
            return forward(*args, **kwargs)
        if self.instrument.rounds_alike:
            output = forward(*args)
            output[..., output.shape[-1] // self.parts * self.read :] = fill
        else:
            output = leading_product(self.module, forward, *args, share=(self.read, self.parts), fill=fill)
            if output is None:
                return forward(*args)
        call.spared = True
        return output


class PatchHook(SavingHook):
    """On the convolution that makes tokens of the latent: puts the channels of a token next to each other in memory.

    What follows in a skip step would otherwise walk across all tokens for every channel, or reorder them later.
    """

    def save(self, call: Call, forward: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not call.skips or call.undecided:
            return forward(*args, **kwargs)
        if call.certain and len(args) == 1 and not kwargs and not self.instrument.rounds_alike:
            output = patches_by_product(self.module, forward, *args)
            if output is not None:
                call.spared = True
                return output
        return forward(*args, **kwargs).movedim(1, -1).contiguous().movedim(-1, 1)
