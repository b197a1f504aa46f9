"""Pictures of a pipeline's latents: unpacked, brought back to the autoencoder's scale, and decoded."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.layouts import Grid


def check_decodes(pipe: Any) -> None:
    """Raise ValueError, with the reason, for a pipeline whose latents no rule here decodes."""
    vae = getattr(pipe, "vae", None)
    if vae is not None and getattr(vae.config, "timestep_conditioning", False):
        raise ValueError(
            f"the preview cannot decode by {type(vae).__name__}, which is given noise and a timestep: leave preview out"
        )


@torch.no_grad()
def decode(pipe: Any, latent: Tensor, grid: Grid, *, channel_dim: int = 1) -> Tensor:
    """Return images (batch, band, y, x) or videos (batch, band, frame, y, x) in [0, 1].

    Args:
        pipe: with `vae`; without one latents are images in [-1, 1].
        latent: (batch, channel, [frame,] row, column), channels anywhere, or packed (batch, token, channel).
        grid: frames, rows and columns of the tokens.
        channel_dim: position of the channels in a latent that is not packed.
    """
    vae = getattr(pipe, "vae", None)
    packed = latent.ndim == 3
    if packed and vae is not None and getattr(vae, "bn", None) is not None:  # Flux 2 normalises whole patches
        scale = (vae.bn.running_var + vae.config.batch_norm_eps).sqrt()
        latent = latent[:, : prod(grid)] * scale.to(latent) + vae.bn.running_mean.to(latent)
    if packed:
        latent = _unpacked(latent[:, : prod(grid)], grid, _channels(vae, latent.shape[-1]))
    else:
        latent = latent.movedim(channel_dim, 1)
    if vae is None:
        if latent.shape[1] > 4:
            raise ValueError(f"{type(pipe).__name__} has no vae that makes pictures of {latent.shape[1]} channels")
        return _unit(latent)
    if latent.ndim == 4 and _of_videos(vae):
        latent = latent.unsqueeze(2)
    elif latent.ndim == 5 and not _of_videos(vae):
        latent = latent[:, :, 0]
    if not (packed and getattr(vae, "bn", None) is not None):
        latent = _rescaled(vae, latent)
    # of a part that is brought to its device when it runs, the hook of accelerate tells that device
    device = getattr(getattr(vae, "_hf_hook", None), "execution_device", None) or vae.device
    pictures = _unit(vae.decode(latent.to(device, vae.dtype), return_dict=False)[0].float())
    single = pictures.ndim == 5 and pictures.shape[2] == 1
    return pictures[:, :, 0] if single and not hasattr(pipe, "video_processor") else pictures


def shrink(pictures: Tensor, longest: int) -> Tensor:
    """Average down to at most `longest` pixels a side: (..., y, x) -> (..., y', x'), of the same proportions."""
    *rest, height, width = pictures.shape
    factor = min(1.0, longest / max(height, width))
    size = [max(1, round(side * factor)) for side in (height, width)]
    if size == [height, width]:
        return pictures
    flat = pictures.reshape(-1, 1, height, width)
    return torch.nn.functional.interpolate(flat, size=size, mode="area").reshape(*rest, *size)


def _unpacked(tokens: Tensor, grid: Grid, channels: int) -> Tensor:
    """(B, N, C * patch^2), channels first in every token -> (B, C, F, H, W); every packing of diffusers is so."""
    frames, rows, columns = grid
    patch = round((tokens.shape[-1] / channels) ** 0.5)
    if channels * patch**2 != tokens.shape[-1]:
        raise ValueError(f"tokens of {tokens.shape[-1]} values are no square patches of {channels} channels")
    latent = tokens.reshape(len(tokens), frames, rows, columns, channels, patch, patch)
    return latent.permute(0, 4, 1, 2, 5, 3, 6).reshape(len(tokens), channels, frames, rows * patch, columns * patch)


def _channels(vae: Any, packed: int) -> int:
    config = {} if vae is None else vae.config
    return int(config.get("latent_channels") or config.get("z_dim") or packed)


def _of_videos(vae: Any) -> bool:
    """Tell whether an autoencoder decodes frames: its convolutions have three dimensions."""
    return any(getattr(module, "weight", None) is not None and module.weight.ndim == 5 for module in vae.modules())


def _rescaled(vae: Any, latent: Tensor) -> Tensor:
    """Undo the normalisation under which the transformer sees latents, (B, C, ...)."""
    config = vae.config
    kept = dict(vae.named_buffers(recurse=False))  # some keep the statistics beside the weights
    mean, std = (kept.get(name, config.get(name)) for name in ("latents_mean", "latents_std"))
    factor = float(config.get("scaling_factor") or 1.0)
    if mean is None or std is None:
        return latent / factor + float(config.get("shift_factor") or 0.0)
    shape = [1, -1] + [1] * (latent.ndim - 2)
    mean, std = (torch.as_tensor(one).to(latent).view(shape) for one in (mean, std))
    return latent * std / factor + mean


def _unit(pictures: Tensor) -> Tensor:
    return (pictures / 2 + 0.5).clamp(0, 1)
