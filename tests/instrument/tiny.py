"""What a small random transformer is to the tests, and parts that many of their inputs are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

BATCH, TEXT = 2, 5


@dataclass(frozen=True)
class Tiny:
    """A model and what a test has to know about it without asking the package.

    Attributes:
        inputs: keyword arguments of its forward.
        tokens: number of image tokens.
        latent, timestep: names of those arguments.
        end: timesteps fall from `start` to `end`, or rise, along a trajectory.
    """

    model: nn.Module
    inputs: dict[str, Any]
    tokens: int
    latent: str = "hidden_states"
    timestep: str = "timestep"
    start: float = 999.0
    end: float = 1.0

    def __call__(self, **changed: Any) -> Tensor:
        """What is being made in the model's output, as one tensor."""
        with torch.no_grad():
            sample = self.model(**{**self.inputs, **changed}, return_dict=False)[0]
        if isinstance(sample, list):
            return torch.stack(sample)
        return sample[:, -1] if sample.ndim == 6 else sample

    def at(self, step: int, steps: int) -> dict[str, Any]:
        """Arguments on a smooth path: latent and timestep move a little at every step."""
        part = step / max(steps - 1, 1)
        given = self.inputs[self.timestep]
        timestep = torch.full_like(given, self.start + part * (self.end - self.start))
        return {**self.inputs, self.timestep: timestep, self.latent: drift(self.inputs[self.latent], part)}


def drift(latent: Any, part: float) -> Any:
    """A latent moved along a curve with bends of every order."""
    if isinstance(latent, list):
        return [drift(sample, part) for sample in latent]
    phase = torch.arange(latent.numel(), dtype=torch.float32).view(latent.shape)
    return (latent * (1 - 0.4 * part) + 0.6 * torch.sin(2.0 * part + phase)).contiguous()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape)


def position_ids(height: int, width: int, *, columns: int = 3, image: int = 0) -> Tensor:
    ids = torch.zeros(height, width, columns)
    ids[..., 0] = image
    ids[..., 1] += torch.arange(height)[:, None]
    ids[..., 2] += torch.arange(width)
    return ids.flatten(0, 1)


def captioned(latent: Tensor, *, time: float = 500.0, width: int = 12) -> dict[str, Any]:
    """What most models take: a latent, a timestep, text features."""
    return {
        "hidden_states": latent,
        "timestep": torch.full((BATCH,), time),
        "encoder_hidden_states": random(BATCH, TEXT, width),
    }


def mask() -> Tensor:
    """Of text, whose second sample is shorter."""
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
