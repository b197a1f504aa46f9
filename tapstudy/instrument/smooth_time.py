"""Smooth a transformer in time: a low-pass of its timestep features, folded into the weights that read them."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from tapstudy.instrument.handle import find_transformers
from tapstudy.instrument.time_features import TimeEmbedder, time_embedders
from tapstudy.instrument.weight_edits import WeightEdit, WeightEdits, in_force, refuse, weight_of

_NAME = "smooth_time"


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
    edits: list[WeightEdit] = []
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
        edits += [_edit(embedder, sigma) for embedder in unique.values()]
    return SmoothTime(float(sigma), edits)


def smoothed_sigma(target: Any) -> float:
    """Sigma of the `smooth_time` in force on a pipeline or transformer, 0 where there is none."""
    return max(
        (
            in_force(embedder.linear, _NAME) or 0.0
            for model, _ in find_transformers(target).values()
            for embedder in time_embedders(model)
        ),
        default=0.0,
    )


class SmoothTime(WeightEdits):
    """A low-pass in force. As a context manager it removes itself.

    Attributes:
        sigma: its width in units of time.
        layers: paths of the layers it scales.
    """

    def __init__(self, sigma: float, edits: list[WeightEdit]) -> None:
        self.sigma = sigma
        super().__init__(edits)


def _edit(embedder: TimeEmbedder, sigma: float) -> WeightEdit:
    """Scale the columns of the layer that reads the features."""

    def scaled(weight: Tensor) -> Tensor:
        return (weight.double() * embedder.low_pass(sigma)).to(weight.dtype) if sigma else weight

    return WeightEdit.of(_NAME, embedder.path, embedder.linear, sigma, scaled)


def _refuse(model: nn.Module, embedder: TimeEmbedder) -> None:
    """Raise if the layer cannot be scaled exactly."""
    linear, where = embedder.linear, f"{type(model).__name__}.{embedder.path}"
    if (sigma := in_force(linear, _NAME)) is not None:
        raise RuntimeError(
            f"{where} is smoothed already, with sigma {sigma:g}: remove that handle first (two of widths a and b "
            "would be one of sqrt(a^2 + b^2))"
        )
    refuse(linear, where, _NAME, "scaled exactly")
    weight = weight_of(linear, _NAME)
    if weight.shape[-1] != embedder.channels:
        raise ValueError(
            f"{where} reads {weight.shape[-1]} values, but there are {embedder.channels} features of the timestep"
        )
