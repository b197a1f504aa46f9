"""The residual in latent space: model output minus model input, cut into the patches that tokens stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.adapters import Grid


def sample_of(output: Any) -> Tensor:
    """The prediction in a transformer's output, whether tuple or output object."""
    return output[0] if isinstance(output, tuple) else output.sample


def like_output(kind: type[Any], sample: Tensor) -> Any:
    """An output of the class that the last full pass returned."""
    return (sample,) if issubclass(kind, tuple) else kind(sample=sample)


def latent_residual(latent: Tensor, output: Tensor) -> Tensor:
    """Output minus input; the output itself where the two have different shapes (a learned variance, say)."""
    wide = torch.promote_types(output.dtype, torch.float32)
    output = output.detach().to(wide)
    return output - latent.detach().to(wide) if output.shape == latent.shape else output


def latent_sum(latent: Tensor, residual: Tensor, dtype: torch.dtype) -> Tensor:
    """Undo `latent_residual`."""
    return (latent + residual if residual.shape == latent.shape else residual).to(dtype)


def to_tokens(latent: Tensor, grid: Grid, channel_dim: int) -> Tensor:
    """Latent (batch, channel, [frame,] row, column), channels anywhere -> (batch, token, patch values)."""
    latent = latent.movedim(channel_dim, -1)  # (B, [F,] H, W, C)
    if latent.ndim == 4:
        latent = latent.unsqueeze(1)
    sizes = _patch_sizes(latent.shape[1:4], grid)
    for axis, (count, size) in enumerate(zip(grid, sizes, strict=True)):
        latent = latent.unflatten(1 + 2 * axis, (count, size))  # (B, T, pt, H, ph, W, pw, C) in the end
    return latent.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(4).flatten(1, 3)  # (B, N, pt * ph * pw * C)


def from_tokens(tokens: Tensor, grid: Grid, channel_dim: int, shape: torch.Size) -> Tensor:
    """Undo `to_tokens`; `shape` is that of the latent."""
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
