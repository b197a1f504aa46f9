"""What the passes of a run were given, without the values: tensors and models on torch's meta device."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from tapstudy.instrument.layouts import Grid, Start
from tapstudy.instrument.places import StandIn
from tapstudy.policies.base import RunInfo


@dataclass(frozen=True)
class Inputs:
    """Hold what decides the shapes inside the passes of one context, from one beginning of its history to the next.

    Attributes:
        step: the first of them.
        arguments: of the model's forward, tensors on the meta device.
        gradients: whether they were enabled.
        info: what the policy was told when its history began; None where no history is about the passes.
        grid: of the image tokens.
        starts: where these are in the input of the first block, in that of the probe, and in that of the tail.
    """

    step: int
    arguments: inspect.BoundArguments
    gradients: bool
    info: RunInfo | None = None
    grid: Grid = (1, 1, 1)
    starts: tuple[Start, Start, Start] = (0, 0, 0)

    @classmethod
    def of(cls, step: int, signature: inspect.Signature, arguments: Mapping[str, Any], **told: Any) -> Self:
        """Take the arguments of a forward by name; `told` are the further attributes."""
        named: Any = OrderedDict(
            (name, None if name == "self" else on_meta(value)) for name, value in arguments.items()
        )
        return cls(step, inspect.BoundArguments(signature, named), torch.is_grad_enabled(), **told)

    def run(self, model: nn.Module) -> Any:
        """Give them to a model on the meta device."""
        with torch.set_grad_enabled(self.gradients):
            return model(*self.arguments.args[1:], **self.arguments.kwargs)


def on_meta(value: Any) -> Any:
    """Return tensors, and lists, tuples and dicts of such, on the meta device; anything else as it is."""
    if isinstance(value, Tensor):
        return torch.empty_like(value, device="meta", requires_grad=False)
    if type(value) is dict:
        return {name: on_meta(part) for name, part in value.items()}
    return type(value)(map(on_meta, value)) if type(value) in (list, tuple) else value


def model_on_meta(model: nn.Module, copies: dict[int, nn.Module] | None = None) -> nn.Module:
    """Return a copy of a model without values and hooks, each method that of its class; the model is left alone."""
    model, copies = getattr(model, "_orig_mod", model), {} if copies is None else copies
    if id(model) in copies:
        return copies[id(model)]
    kind: Any = type(model)
    copied = copies[id(model)] = kind.__new__(kind)
    for name, value in vars(model).items():
        if name.endswith("hooks") and isinstance(value, dict):
            kept: Any = OrderedDict()
        elif name == "_parameters":
            kept = {key: one if one is None else nn.Parameter(on_meta(one), False) for key, one in value.items()}
        elif name == "_modules":
            kept = {key: one if one is None else model_on_meta(one, copies) for key, one in value.items()}
        elif name in OTHERS or isinstance(value, StandIn) or callable(getattr(kind, name, None)):
            continue
        else:
            kept = on_meta(value)
        vars(copied)[name] = kept
    return copied


OTHERS = ("_hf_hook", "_old_forward", "_diffusers_hook", "_compiled_call_impl")  # of accelerate, diffusers, torch
