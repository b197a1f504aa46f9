"""The residual in latent space: model output minus model input, cut into the patches that tokens stand for."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Self

import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.layouts import Arguments, Grid


def read_latent(latent: Tensor | list[Any]) -> Tensor:
    """Read the latent as one tensor; samples in a list are stacked, of a list of images per sample the last counts."""
    if isinstance(latent, Tensor):
        return latent
    return torch.stack([sample[-1] if isinstance(sample, list) else sample for sample in latent])


def misfit(model: nn.Module, adapter: Adapter, arguments: Arguments) -> str | None:
    """Tell why the tokens that a row counts are not those of a packed latent, or None."""
    latent = read_latent(arguments[adapter.latent])
    if latent.ndim != 3:
        return None
    grid, others = adapter.grid(model, arguments), adapter.references(model, arguments)
    if prod(grid) + others == latent.shape[1]:
        return None
    return (
        f"the token grid {grid} and {others} tokens of reference images do not make up the {latent.shape[1]} tokens of "
        f"{adapter.latent}"
    )


@dataclass(frozen=True)
class Form:
    """What a transformer's output looks like, to make one without running it.

    Attributes:
        kind: class of the output.
        listed: whether the samples come in a list.
    """

    kind: type[Any]
    shape: torch.Size
    dtype: torch.dtype
    listed: bool

    @classmethod
    def read(cls, output: Any) -> tuple[Tensor, Self]:
        """Return the prediction in a transformer's output, and the form of that output."""
        sample = output[0] if isinstance(output, tuple) else output.sample
        tensor = read_latent(sample)
        return tensor, cls(type(output), tensor.shape, tensor.dtype, isinstance(sample, list))

    def wrap(self, tensor: Tensor, *, return_dict: bool) -> Any:
        """Return an output holding `tensor`, as the transformer would return it."""
        sample = list(tensor.to(self.dtype)) if self.listed else tensor.to(self.dtype)
        if not return_dict:
            return (sample,)
        return (Transformer2DModelOutput if issubclass(self.kind, tuple) else self.kind)(sample=sample)


def latent_residual(latent: Tensor | None, output: Tensor) -> Tensor:
    """Output minus input; the output itself without an input, or one of another shape (a learned variance, say)."""
    wide = torch.promote_types(output.dtype, torch.float32)
    output = output.detach().to(wide)
    return output - latent.detach().to(wide) if latent is not None and output.shape == latent.shape else output


def latent_sum(latent: Tensor, residual: Tensor) -> Tensor:
    """Undo `latent_residual`."""
    return latent + residual if residual.shape == latent.shape else residual


def made(latent: Tensor, grid: Grid) -> Tensor:
    """Return the part that is being made, without the tokens of references or the items before it."""
    if latent.ndim == 3:
        return latent[:, : prod(grid)]
    return latent[:, -1] if latent.ndim == 6 else latent


def to_tokens(latent: Tensor, grid: Grid, channel_dim: int) -> Tensor:
    """Latent (batch, channel, [frame,] row, column), channels anywhere -> (batch, token, patch values).

    Packed latents are tokens already; those behind the image (references) are left out. So are all items but the last
    of a latent of items, (batch, item, channel, frame, row, column).
    """
    latent = made(latent, grid)
    if latent.ndim == 3:
        return latent
    latent = latent.movedim(channel_dim, -1)  # (B, [F,] H, W, C)
    if latent.ndim == 4:
        latent = latent.unsqueeze(1)
    sizes = _patch_sizes(latent.shape[1:4], grid)
    for axis, (count, size) in enumerate(zip(grid, sizes, strict=True)):
        latent = latent.unflatten(1 + 2 * axis, (count, size))  # (B, T, pt, H, ph, W, pw, C) in the end
    return latent.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)  # (B, N, pt * ph * pw * C)


def from_tokens(tokens: Tensor, grid: Grid, *, channel_dim: int, shape: torch.Size) -> Tensor:
    """Undo `to_tokens`; `shape` is that of the latent. Tokens that were left out are zero."""
    if len(shape) == 3:
        packed = tokens.new_zeros(shape)
        packed[:, : prod(grid)] = tokens
        return packed
    if len(shape) == 6:
        items = tokens.new_zeros(shape)
        made = torch.Size([shape[0], *shape[2:]])
        items[:, -1] = from_tokens(tokens, grid, channel_dim=channel_dim, shape=made)
        return items
    like = torch.empty(shape, device="meta").movedim(channel_dim, -1)
    video = like.ndim == 5
    spatial = like.shape[1:4] if video else (1, *like.shape[1:3])
    pt, ph, pw = _patch_sizes(spatial, grid)
    latent = tokens.view(len(tokens), *grid, pt, ph, pw, -1)  # (B, T, H, W, pt, ph, pw, C)
    latent = latent.permute(0, 1, 4, 2, 5, 3, 6, 7).flatten(1, 2).flatten(2, 3).flatten(3, 4)  # (B, F, H, W, C)
    return (latent if video else latent.squeeze(1)).movedim(-1, channel_dim)


def _patch_sizes(spatial: tuple[int, ...] | torch.Size, grid: Grid) -> list[int]:
    if any(size % count for size, count in zip(spatial, grid, strict=True)):
        raise ValueError(f"a latent of size {tuple(spatial)} does not divide into a token grid of {grid}")
    return [size // count for size, count in zip(spatial, grid, strict=True)]
