"""Smooth a transformer in time: a low-pass of its timestep features, folded into the weights that read them."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.handle import find_transformers
from tapstudy.instrument.time_features import TimeEmbedder, time_embedders

_MARK = "_smooth_time_sigma"
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def smooth_time(target: Any, sigma: float) -> SmoothTime:
    """Average the timestep features of every supported transformer over a Gaussian in time until the handle is removed.

    Exact, and free at run time: the columns of the first linear layer of the timestep embedding are scaled by
    exp(-(omega sigma)^2 / 2). Embeddings of guidance, sizes and the like stay as they are. Removal puts the very
    weights back.

    Args:
        target: a diffusers pipeline, or a transformer.
        sigma: width of the Gaussian in units of time, of which there are 1000 from image to noise, whatever the model
            counts in; 0 changes nothing. A step of T is about 1000 / T wide; twice that is where to begin.

    Raises:
        TypeError: no supported transformer in `target`.
        ValueError: `sigma` below 0 or not finite; no sinusoidal timestep embedding; its layer wrapped (LoRA) or stored
            in a way that scaling would not be exact (quantised, float8, sharded), or out of reach (on disk).
        RuntimeError: the transformer is smoothed already.

    Examples:
        >>> with tapstudy.smooth_time(pipe, 40), tapstudy.tap(pipe, interval=8):  # doctest: +SKIP
        ...     image = pipe("a fox in the snow").images[0]
    """
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not math.isfinite(sigma) or sigma < 0:
        raise ValueError(f"sigma must be a finite number of at least 0, in units of time, got {sigma!r}")
    edits: list[_Edit] = []
    for model, _ in find_transformers(target).values():
        embedders = time_embedders(model)
        if not embedders:
            raise ValueError(
                f"{type(model).__name__} cannot be smoothed in time: it has no timestep embedding made of diffusers' "
                "Timesteps and TimestepEmbedding"
            )
        for embedder in embedders:
            _refuse(model, embedder)
        # a layer that stands in two places is scaled once
        unique = {id(embedder.linear): embedder for embedder in embedders}
        edits += [_Edit.of(embedder, sigma) for embedder in unique.values()]
    handle = SmoothTime(float(sigma), edits)
    try:
        for edit in edits:
            edit.apply()
    except BaseException:
        handle.remove()
        raise
    return handle


def smoothed_sigma(target: Any) -> float:
    """Sigma of the `smooth_time` in force on a pipeline or transformer, 0 where there is none."""
    return max(
        (
            getattr(_innermost(embedder.linear), _MARK, 0.0)
            for model, _ in find_transformers(target).values()
            for embedder in time_embedders(model)
        ),
        default=0.0,
    )


class SmoothTime(AbstractContextManager["SmoothTime"]):
    """A low-pass in force. As a context manager it removes itself.

    Attributes:
        sigma: its width in units of time.
        layers: paths of the layers it scales.
    """

    def __init__(self, sigma: float, edits: list[_Edit]) -> None:
        self.sigma = sigma
        self.layers = tuple(edit.path for edit in edits)
        self._edits = edits

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
class _Edit:
    """The scaled columns of one layer; `original` is its weight as it was, on the CPU."""

    path: str
    linear: nn.Module
    sigma: float
    original: Tensor
    scaled: Tensor

    @classmethod
    def of(cls, embedder: TimeEmbedder, sigma: float) -> _Edit:
        original = _weight(embedder.linear).detach().to("cpu", copy=True)
        scaled = (original.double() * embedder.low_pass(sigma)).to(original.dtype) if sigma else original
        return cls(embedder.path, embedder.linear, sigma, original, scaled)

    def apply(self) -> None:
        setattr(self.linear, _MARK, float(self.sigma))
        self._write(self.scaled)

    def undo(self) -> None:
        if not hasattr(self.linear, _MARK):  # another one failed before this was applied
            return
        delattr(self.linear, _MARK)
        there = _weight(self.linear).detach().cpu()
        # a cast meanwhile, as of pipe.to(dtype), has rounded what is there, and shall have rounded what is put back
        if torch.equal(there, self.scaled.to(there.dtype)):
            self._write(self.original)
        elif not torch.equal(there, self.original.to(there.dtype)):
            warnings.warn(
                f"the weight of {self.path} was changed while smooth_time was in force: it is left as it is",
                UserWarning,
                stacklevel=4,
            )

    def _write(self, values: Tensor) -> None:
        weight = _weight(self.linear)
        with torch.inference_mode(weight.is_inference()), torch.no_grad():
            weight.copy_(values)


def _weight(linear: nn.Module) -> Tensor:
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
        "the layer that reads the timestep features is on the meta device and its weight is out of reach (offloaded to "
        "disk, or never loaded): use smooth_time before offloading"
    )


def _hooks(module: nn.Module) -> Iterator[Any]:
    """Return the hooks of accelerate on a module."""
    hook = getattr(module, "_hf_hook", None)
    yield from getattr(hook, "hooks", [hook])


def _innermost(linear: nn.Module) -> nn.Module:
    """Return the layer itself, inside what LoRA may have wrapped around it since."""
    inner = getattr(linear, "base_layer", None)
    return inner if isinstance(inner, nn.Module) else linear


def _refuse(model: nn.Module, embedder: TimeEmbedder) -> None:
    """Raise if the layer cannot be scaled exactly."""
    linear, where = embedder.linear, f"{type(model).__name__}.{embedder.path}"
    in_force = getattr(_innermost(linear), _MARK, None)
    if in_force is not None:
        raise RuntimeError(
            f"{where} is smoothed already, with sigma {in_force:g}: remove that handle first (two of widths a and b "
            "would be one of sqrt(a^2 + b^2))"
        )
    if _innermost(linear) is not linear:
        raise ValueError(f"{where} is wrapped by an adapter ({type(linear).__name__}): unload or fuse the LoRA first")
    if type(linear) is not nn.Linear or "weight" not in linear._parameters:
        raise ValueError(
            f"{where} is a {type(linear).__name__}, not a plain torch.nn.Linear: a quantised, parametrised or replaced "
            "layer cannot be scaled exactly; leave it out of the quantisation (modules_to_not_convert)"
        )
    weight = _weight(linear)
    if type(weight) not in (nn.Parameter, Tensor) or weight.dtype not in _DTYPES:
        raise ValueError(
            f"the weight of {where} is a {type(weight).__name__} of {weight.dtype}: only plain weights in "
            f"{', '.join(str(dtype).removeprefix('torch.') for dtype in _DTYPES)} can be scaled exactly"
        )
    if weight.shape[-1] != embedder.channels:
        raise ValueError(
            f"{where} reads {weight.shape[-1]} values, but there are {embedder.channels} features of the timestep"
        )
