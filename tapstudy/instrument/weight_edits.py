"""Change weights of linear layers in place, and put the very weights back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class WeightEdits(AbstractContextManager["WeightEdits"]):
    """Changed weights in force. As a context manager it removes itself.

    Attributes:
        layers: paths of the layers whose weights are changed.
    """

    def __init__(self, edits: Sequence[WeightEdit]) -> None:
        self.layers = tuple(edit.path for edit in edits)
        self._edits = list(edits)
        try:
            for edit in edits:
                edit.apply()
        except BaseException:
            self.remove()
            raise

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Put the weights back; the model is again exactly what it was. Safe to call twice.

        Weights that somebody else has changed meanwhile are left as they are, with a warning.
        """
        for edit in self._edits:
            edit.undo()
        self._edits = []


@dataclass
class WeightEdit:
    """The changed weight of one layer.

    Attributes:
        by: name of the function that changes it.
        path: of the layer.
        linear: the layer, which `refuse` has let pass.
        setting: what `in_force` shall tell.
        change: what the weight becomes, of the weight as it was, on the CPU and of the same dtype.
        original: the weight as it was, on the CPU.
    """

    by: str
    path: str
    linear: nn.Module
    setting: float
    change: Callable[[Tensor], Tensor]
    original: Tensor

    @classmethod
    def of(
        cls, by: str, path: str, linear: nn.Module, setting: float, change: Callable[[Tensor], Tensor]
    ) -> WeightEdit:
        return cls(by, path, linear, setting, change, weight_of(linear, by).detach().to("cpu", copy=True))

    def apply(self) -> None:
        setattr(self.linear, _mark(self.by), float(self.setting))
        self._write(self.change(self.original))

    def undo(self) -> None:
        if not hasattr(self.linear, _mark(self.by)):  # another one failed before this was applied
            return
        delattr(self.linear, _mark(self.by))
        there = weight_of(self.linear, self.by).detach().cpu()
        # a cast meanwhile, as of pipe.to(dtype), has rounded what is there, and shall have rounded what is put back
        if torch.equal(there, self.change(self.original).to(there.dtype)):
            self._write(self.original)
        elif not torch.equal(there, self.original.to(there.dtype)):
            warnings.warn(
                f"the weight of {self.path} was changed while {self.by} was in force: it is left as it is",
                UserWarning,
                stacklevel=4,
            )

    def _write(self, values: Tensor) -> None:
        weight = weight_of(self.linear, self.by)
        with torch.inference_mode(weight.is_inference()), torch.no_grad():
            weight.copy_(values)


def in_force(linear: nn.Module, by: str) -> float | None:
    """Return the setting of the function `by` that has changed a layer's weight, None where it has not."""
    setting: float | None = getattr(innermost(linear), _mark(by), None)
    return setting


def weight_of(linear: nn.Module, by: str) -> Tensor:
    """Find the weight where it is kept: on the module or, with accelerate's offloading, in the map of its hook."""
    weight = linear.weight
    assert isinstance(weight, Tensor)
    if not weight.is_meta:
        return weight
    for hook in _hooks(linear):
        kept = getattr(hook, "weights_map", None)
        if kept is not None and kept["weight"] is kept["weight"]:  # not read anew from disk each time
            return kept["weight"]
    raise ValueError(
        f"a layer that {by} changes is on the meta device and its weight is out of reach (offloaded to disk, or never "
        f"loaded): use {by} before offloading"
    )


def innermost(linear: nn.Module) -> nn.Module:
    """Return the layer itself, inside what LoRA may have wrapped around it since."""
    inner = getattr(linear, "base_layer", None)
    return inner if isinstance(inner, nn.Module) else linear


def refuse(linear: nn.Module, where: str, by: str, done: str) -> None:
    """Raise ValueError if the weight of a layer cannot be changed exactly.

    Args:
        where: the layer, for the message.
        by: name of the function that would change it.
        done: what that does, such as "scaled exactly".
    """
    if innermost(linear) is not linear:
        raise ValueError(f"{where} is wrapped by an adapter ({type(linear).__name__}): unload or fuse the LoRA first")
    if type(linear) is not nn.Linear or "weight" not in linear._parameters:
        raise ValueError(
            f"{where} is a {type(linear).__name__}, not a plain torch.nn.Linear: a quantised, parametrised or replaced "
            f"layer cannot be {done}; leave it out of the quantisation (modules_to_not_convert)"
        )
    weight = weight_of(linear, by)
    if type(weight) not in (nn.Parameter, Tensor) or weight.dtype not in _DTYPES:
        raise ValueError(
            f"the weight of {where} is a {type(weight).__name__} of {weight.dtype}: only plain weights in "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in _DTYPES)} can be {done}"
        )


def _mark(by: str) -> str:
    return f"_{by}_in_force"


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Return the hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", [hook])
