"""Round the weights of a transformer's blocks to few bits and compute on as before: fake quantisation."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.handle import find_transformers
from tapstudy.instrument.time_features import time_embedders
from tapstudy.instrument.weight_edits import WeightEdit, WeightEdits, in_force, refuse

_NAME = "quantise"


def quantise(target: Any, bits: int = 8) -> Quantised:
    """Round the weights of all linear layers in the blocks of every supported transformer until the handle is removed.

    Symmetric, one scale per output channel, to the nearest level: w becomes s round(w / s) with
    s = max|w| / (2^(bits-1) - 1) over the channel. Activations, biases, embeddings and the layers behind the blocks
    keep their precision, and so do layers inside blocks that read the features of the timestep. It shows what rounding
    does to images and saves neither time nor memory: a copy of the weights waits on the CPU. Removal puts the very
    weights back.

    Args:
        target: a diffusers pipeline, or a transformer.
        bits: of a weight, 2 to 16.

    Raises:
        TypeError: no supported transformer in `target`.
        ValueError: `bits` out of range; no linear layer in the blocks; one wrapped (LoRA), quantised, of another
            type than float, or out of reach (on disk).
        RuntimeError: the transformer is quantised by this function already.

    Examples:
        >>> with tapstudy.quantise(pipe, 4), tapstudy.tap(pipe, interval=8):  # doctest: +SKIP
        ...     image = pipe("a fox in the snow").images[0]
    """
    check_bits(bits)
    edits = [
        WeightEdit.of(_NAME, path, linear, bits, partial(rounded_weight, bits=bits))
        for model, adapter in find_transformers(target).values()
        for path, linear in _layers(model, adapter).items()
    ]
    return Quantised(bits, edits)


class Quantised(WeightEdits):
    """Rounded weights in force. As a context manager it removes itself.

    Attributes:
        bits: of a weight.
        layers: paths of the layers.
    """

    def __init__(self, bits: int, edits: list[WeightEdit]) -> None:
        self.bits = bits
        super().__init__(edits)


def check_bits(bits: int) -> None:
    """Raise ValueError unless it is a number of bits that `quantise` takes."""
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 16:
        raise ValueError(f"bits must be a whole number from 2 to 16, got {bits!r}")


def rounded_weight(weight: Tensor, bits: int) -> Tensor:
    """Round every row to 2^bits - 1 levels that lie around 0 and reach its largest magnitude, (output, input)."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    step = wide.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)  # (output, 1)
    step = torch.where(step == 0, 1, step)
    return ((wide / step).round() * step).to(weight.dtype)


def _layers(model: nn.Module, adapter: Adapter) -> dict[str, nn.Module]:
    """Return the linear layers of the blocks by path, each weight once."""
    name = type(model).__name__
    kept = {id(embedder.linear) for embedder in time_embedders(model)}
    found: dict[int, tuple[str, nn.Module]] = {}
    for path, module in model.named_modules():
        if not path.startswith(tuple(f"{blocks}." for blocks in adapter.blocks)) or id(module) in kept:
            continue
        if not isinstance(module, nn.Linear) and not isinstance(getattr(module, "base_layer", None), nn.Linear):
            continue
        if (bits := in_force(module, _NAME)) is not None:
            raise RuntimeError(f"{name}.{path} is quantised already, to {bits:g} bits: remove that handle first")
        refuse(module, f"{name}.{path}", _NAME, "rounded and put back")
        found.setdefault(id(module.weight), (path, module))
    if not found:
        raise ValueError(f"{name} has nothing to quantise: there is no linear layer in its blocks")
    return dict(found.values())
