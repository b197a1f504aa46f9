"""Training with a low-pass of the clock: fixed factors on the timestep features, moved into the weights at export."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from tapstudy.instrument.time_features import TimeEmbedder, time_embedders


class LowPassTimesteps(nn.Module):
    """A `Timesteps` whose features are scaled by `factors` (num_channels,); without parameters, as that is."""

    def __init__(self, projection: Timesteps, factors: Tensor) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("factors", factors.float(), persistent=False)

    def forward(self, timesteps: Tensor) -> Tensor:
        return self.projection(timesteps) * self.factors  # (batch, num_channels)


def attenuate(model: nn.Module, sigma: float) -> None:
    """Put the low-pass in front of the timestep embedding, for training. Raises ValueError where there is none."""
    found = [(embedder, embedder.name) for embedder in time_embedders(model)]
    if not found:
        raise ValueError(f"{type(model).__name__} has no timestep embedding of diffusers to attenuate")
    for embedder, name in found:
        if name is None or getattr(embedder.parent, "guidance_embedder", None) is not None:
            raise ValueError(
                f"{type(model).__name__} makes no features for the timestep alone: there is no attenuating"
            )
        low_pass = LowPassTimesteps(getattr(embedder.parent, name), embedder.low_pass(sigma))
        setattr(embedder.parent, name, low_pass.to(_weight(embedder).device))


@torch.no_grad()
def fold(model: nn.Module, sigma: float) -> None:
    """Move a low-pass into the weights that read the features of a stock model."""
    for embedder in time_embedders(model):
        weight = _weight(embedder)
        weight.mul_(embedder.low_pass(sigma).to(weight))


@torch.no_grad()
def unfold(model: nn.Module, sigma: float) -> None:
    """Undo `fold` in weights that are to be trained on; columns that it all but erased start from zero."""
    for embedder in time_embedders(model):
        weight = _weight(embedder)
        factors = embedder.low_pass(sigma).to(weight)
        weight.mul_(torch.where(factors > 1e-2, 1 / factors.clamp(min=1e-2), 0.0))


def _weight(embedder: TimeEmbedder) -> Tensor:
    weight = embedder.linear.weight
    assert isinstance(weight, Tensor)
    return weight
