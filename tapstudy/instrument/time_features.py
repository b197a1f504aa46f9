"""How a transformer is told the time: the sinusoidal features of the timestep, and the layer that reads them.

Feature j is cos or sin of omega_j t, with t from 0 to 1000 and omega from 1 down to 1e-4 radians per unit of time.
Averaged over t ~ N(t, sigma^2) it is itself times exp(-(omega_j sigma)^2 / 2), exactly. As the features go straight
into a linear layer, that average is a scaling of the columns of its weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

# What models call the pair that embeds the timestep. Guidance, sizes and offsets are embedded by pairs of other names.
_PROJECTIONS = ("time_proj", "timesteps_proj", "time_step_embed")
_EMBEDDINGS = ("timestep_embedder", "time_embedding", "time_embedder", "time_step_proj")

# A unit of time, of which there are 1000 from image to noise, where it enters the features, if that is not 1.
_UNITS: dict[str, Callable[[Any], float]] = {
    "AuraFlowTransformer2DModel": lambda model: 1e-3,
    "Lumina2Transformer2DModel": lambda model: 1e-3,
    "LuminaNextDiT2DModel": lambda model: 1e-3,
    "NucleusMoEImageTransformer2DModel": lambda model: 1e-3,
    "QwenImageTransformer2DModel": lambda model: 1e-3,
    # the guided one (Sprint) takes times from 0 to 1
    "SanaTransformer2DModel": lambda model: 1e-3 if model.config.guidance_embeds else model.config.timestep_scale,
    "ZImageTransformer2DModel": lambda model: model.t_scale / 1000,
}


@dataclass(frozen=True)
class TimeEmbedder:
    """One place where a model makes features of the timestep and reads them.

    Attributes:
        path: of `linear` in the model.
        parent, name: the module that holds the diffusers projection, and under which name; a model that makes the
            features in a function has no such name.
        linear: the layer that reads the features.
        omega: (half of the features,), float64, in radians per unit of time, of which there are 1000.
        channels: number of features; an odd one is followed by a zero.
    """

    path: str
    parent: nn.Module
    name: str | None
    linear: nn.Module
    omega: Tensor
    channels: int

    def low_pass(self, sigma: float) -> Tensor:
        """Factors (channels,), float64, of the features averaged over a Gaussian of width `sigma` in units of time."""
        factors = torch.exp(-((self.omega * sigma) ** 2) / 2).repeat(2)
        return torch.nn.functional.pad(factors, (0, self.channels % 2), value=1.0)


def time_embedders(model: nn.Module) -> list[TimeEmbedder]:
    """Tell where a model embeds the timestep, as often as it does; empty where no sinusoidal features are found."""
    unit = next((_UNITS[base.__name__](model) for base in type(model).__mro__ if base.__name__ in _UNITS), 1.0)
    return list(_walk(model, unit))


def _walk(model: nn.Module, unit: float) -> Iterator[TimeEmbedder]:
    for path, parent in model.named_modules():
        prefix = f"{path}." if path else ""
        name = next((name for name in _PROJECTIONS if isinstance(getattr(parent, name, None), Timesteps)), None)
        reader = next((at for at in _EMBEDDINGS if isinstance(getattr(parent, at, None), TimestepEmbedding)), None)
        if name is not None and reader is not None:
            projection: Timesteps = getattr(parent, name)
            omega = frequencies(
                projection.num_channels, shift=projection.downscale_freq_shift, scale=projection.scale * unit
            )
            linear = getattr(parent, reader).linear_1
            yield TimeEmbedder(
                f"{prefix}{reader}.linear_1", parent, name, linear, omega, projection.num_channels
            )  # fmt: skip
        elif type(parent).__name__ == "TimestepEmbedder" and hasattr(parent, "frequency_embedding_size"):  # Z-Image
            channels: Any = parent.frequency_embedding_size
            omega = frequencies(channels, shift=0, scale=unit)
            yield TimeEmbedder(f"{prefix}mlp.0", parent, None, parent.get_submodule("mlp.0"), omega, channels)


def frequencies(channels: int, *, shift: float, scale: float) -> Tensor:
    """Return what diffusers' `get_timestep_embedding` multiplies the timestep with, (channels // 2,), float64."""
    half = channels // 2
    exponent = -math.log(10_000) * torch.arange(half, dtype=torch.float64) / (half - shift)
    return scale * exponent.exp()
