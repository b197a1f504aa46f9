"""A low-pass of the clock: the timestep features of a diffusers transformer, averaged over a Gaussian in time.

`Timesteps` feeds `TimestepEmbedding` with cosines and sines of omega t. Averaged over t ~ N(t, sigma^2) each is itself
times exp(-(omega sigma)^2 / 2), exactly: a scaling of a column of the embedding's first linear layer.
"""

from __future__ import annotations

import math

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn


def time_projections(model: nn.Module) -> list[tuple[nn.Module, str, Timesteps, nn.Linear]]:
    """Where a model turns timesteps into features: (parent, attribute, projection, the linear layer that reads it).

    Projections of guidance scales, sizes and the like are not of time and left out.
    """
    found = []
    for parent in model.modules():
        projection = getattr(parent, "time_proj", None)
        embedder = getattr(parent, "timestep_embedder", None)
        if isinstance(projection, Timesteps) and embedder is not None:
            found.append((parent, "time_proj", projection, embedder.linear_1))
    return found


def low_pass(projection: Timesteps, sigma: float) -> Tensor:
    """Factors (num_channels,), float64, of the features of `projection` averaged over a Gaussian of width `sigma`.

    `sigma` is in the units of the timesteps that enter the projection, 0 to 1000 in diffusers' transformers.
    """
    half = projection.num_channels // 2
    exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float64) / (half - projection.downscale_freq_shift)
    omega = projection.scale * exponent.exp()  # radians per unit of time
    factors = torch.exp(-((omega * sigma) ** 2) / 2).repeat(2)
    return torch.nn.functional.pad(factors, (0, projection.num_channels % 2), value=1.0)


class LowPassTimesteps(nn.Module):
    """A `Timesteps` whose features are averaged over a Gaussian in time; without parameters, as that is."""

    def __init__(self, projection: Timesteps, sigma: float) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("factors", low_pass(projection, sigma).float(), persistent=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.projection(timesteps) * self.factors  # (batch, num_channels)


def attenuate(model: nn.Module, sigma: float) -> None:
    """Put the low-pass in front of the timestep embedding, for training. Raises ValueError where there is none."""
    found = time_projections(model)
    if not found:
        raise ValueError(f"{type(model).__name__} has no timestep embedding of diffusers to attenuate")
    for parent, name, projection, linear in found:
        setattr(parent, name, LowPassTimesteps(projection, sigma).to(linear.weight.device))


@torch.no_grad()
def fold(model: nn.Module, sigma: float) -> None:
    """Move a low-pass into the weights that read the features of a stock model."""
    for _, _, projection, linear in time_projections(model):
        linear.weight.mul_(low_pass(projection, sigma).to(linear.weight))


@torch.no_grad()
def unfold(model: nn.Module, sigma: float) -> None:
    """Undo `fold` in weights that are to be trained on; columns that it all but erased start from zero."""
    for _, _, projection, linear in time_projections(model):
        factors = low_pass(projection, sigma).to(linear.weight)
        linear.weight.mul_(torch.where(factors > 1e-2, 1 / factors.clamp(min=1e-2), 0.0))
