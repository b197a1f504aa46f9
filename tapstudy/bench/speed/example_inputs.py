"""Random arguments for one call of a supported transformer, of any size, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Grid

BATCH = 2


@dataclass(frozen=True)
class _Maker:
    """Makes tensors of one kind. `config` is the transformer's, `text` the number of text tokens."""

    config: Any
    grid: Grid
    text: int
    batch: int
    device: torch.device
    dtype: torch.dtype

    def random(self, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape, device=self.device, dtype=self.dtype)

    def constant(self, value: float) -> Tensor:
        """One number per sample."""
        return torch.full((self.batch,), value, device=self.device, dtype=self.dtype)

    def mask(self) -> Tensor:
        """No text token is padding."""
        return torch.ones(self.batch, self.text, device=self.device, dtype=torch.int64)

    def position_ids(self, columns: int) -> Tensor:
        """(image, row, column, ...) of every image token."""
        frames, height, width = self.grid
        ids = torch.zeros(frames, height, width, columns, device=self.device)
        ids[..., 1] += torch.arange(height, device=self.device)[:, None]
        ids[..., 2] += torch.arange(width, device=self.device)
        return ids.flatten(0, 2)

    @property
    def pixels(self) -> tuple[int, int]:
        """Rows and columns of a latent that is cut into square patches."""
        return self.grid[1] * self.config.patch_size, self.grid[2] * self.config.patch_size

    @property
    def latent(self) -> Tensor:
        """A latent that is cut into square patches."""
        return self.random(self.config.in_channels, *self.pixels)

    @property
    def tokens(self) -> Tensor:
        """A latent that is tokens already."""
        return self.random(prod(self.grid), self.config.in_channels)

    def captioned(self, latent: Tensor, time: float, width: str) -> dict[str, Any]:
        """What most models take: a latent, a time, text whose width is a field of the configuration."""
        text = self.random(self.text, getattr(self.config, width))
        return {"hidden_states": latent, "timestep": self.constant(time), "encoder_hidden_states": text}

    def pooled(self) -> dict[str, Any]:
        return {"pooled_projections": self.random(self.config.pooled_projection_dim)}

    def guidance(self, value: float) -> dict[str, Any]:
        return {"guidance": self.constant(value)} if self.config.guidance_embeds else {}

    def positions(self, columns: int) -> dict[str, Any]:
        text = torch.zeros(self.text, columns, device=self.device)
        return {"img_ids": self.position_ids(columns), "txt_ids": text}


def _cogvideox(make: _Maker) -> dict[str, Any]:
    config = make.config
    frames = make.grid[0] * (config.patch_size_t or 1)
    inputs: dict[str, Any] = {
        "hidden_states": make.random(frames, config.in_channels, *make.pixels),
        "timestep": make.constant(500.0),
        # learned and sinusoidal positions are laid out for text of this length, padding included
        "encoder_hidden_states": make.random(config.max_text_seq_length, config.text_embed_dim),
    }
    if config.use_rotary_positional_embeddings:
        shape = prod(make.grid), config.attention_head_dim
        inputs["image_rotary_emb"] = tuple(torch.ones(shape, device=make.device) for _ in range(2))
    if config.ofs_embed_dim:
        inputs["ofs"] = torch.full((1,), 2.0, device=make.device, dtype=make.dtype)
    return inputs


def _pixart(make: _Maker) -> dict[str, Any]:
    inputs, asks = make.captioned(make.latent, 500.0, "caption_channels"), make.config.use_additional_conditions
    size = ratio = None
    if make.config.sample_size == 128 if asks is None else asks:
        size = torch.full((make.batch, 2), 1024.0, device=make.device, dtype=make.dtype)
        ratio = torch.ones(make.batch, 1, device=make.device, dtype=make.dtype)
    added = {"resolution": size, "aspect_ratio": ratio}
    return inputs | {"encoder_attention_mask": make.mask(), "added_cond_kwargs": added}


def _wan(make: _Maker) -> dict[str, Any]:
    size = (count * patch for count, patch in zip(make.grid, make.config.patch_size, strict=True))
    return make.captioned(make.random(make.config.in_channels, *size), 500.0, "text_dim")


def _z_image(make: _Maker) -> dict[str, Any]:
    patch, frame_patch = make.config.all_patch_size[0], make.config.all_f_patch_size[0]
    frames, height, width = make.grid
    return {
        "x": list(make.random(make.config.in_channels, frames * frame_patch, height * patch, width * patch)),
        "t": make.constant(0.5),
        "cap_feats": list(make.random(make.text, make.config.cap_feat_dim)),
        "patch_size": patch,
        "f_patch_size": frame_patch,
    }


_INPUTS: dict[str, Callable[[_Maker], dict[str, Any]]] = {
    "CogVideoXTransformer3DModel": _cogvideox,
    "DiTTransformer2DModel": lambda make: {
        "hidden_states": make.latent, "timestep": make.constant(500.0),
        "class_labels": torch.zeros(make.batch, device=make.device, dtype=torch.int64),
    },
    "Flux2Transformer2DModel": lambda make: {
        **make.captioned(make.tokens, 0.5, "joint_attention_dim"), **make.positions(4), **make.guidance(3.5),
    },
    "FluxTransformer2DModel": lambda make: {
        **make.captioned(make.tokens, 0.5, "joint_attention_dim"), **make.positions(3), **make.guidance(3.5),
        **make.pooled(),
    },
    "HunyuanVideoTransformer3DModel": lambda make: {
        **make.captioned(
            make.random(make.config.in_channels, make.grid[0] * make.config.patch_size_t, *make.pixels), 500.0,
            "text_embed_dim",
        ),
        "encoder_attention_mask": make.mask(), **make.pooled(), **make.guidance(6000.0),
    },
    "LTXVideoTransformer3DModel": lambda make: {
        **make.captioned(make.tokens, 500.0, "caption_channels"), "encoder_attention_mask": make.mask(),
        **dict(zip(("num_frames", "height", "width"), make.grid, strict=True)),
    },
    "Lumina2Transformer2DModel": lambda make: {
        **make.captioned(make.latent, 0.5, "cap_feat_dim"), "encoder_attention_mask": make.mask(),
    },
    "PixArtTransformer2DModel": _pixart,
    "QwenImageTransformer2DModel": lambda make: {
        **make.captioned(make.tokens, 0.5, "joint_attention_dim"), "encoder_hidden_states_mask": make.mask(),
        "img_shapes": [[make.grid]] * make.batch,
    },
    "SD3Transformer2DModel": lambda make: {
        **make.captioned(make.latent, 500.0, "joint_attention_dim"), **make.pooled(),
    },
    "SanaTransformer2DModel": lambda make: {
        **make.captioned(make.latent, 500.0, "caption_channels"), "encoder_attention_mask": make.mask(),
        **make.guidance(4.5),
    },
    "WanTransformer3DModel": _wan,
    "ZImageTransformer2DModel": _z_image,
}  # fmt: skip
_VIDEO = ("CogVideoX", "HunyuanVideo", "LTXVideo", "Wan")


def example_inputs(model: nn.Module, grid: Grid | None = None, *, text: int = 8, batch: int = BATCH) -> dict[str, Any]:
    """Keyword arguments for one call of `model.forward`, on its device and in its dtype.

    Args:
        model: a transformer of a class that comes with an adapter, or of a subclass.
        grid: frames, rows and columns of the image tokens; None for a small one.
        text: number of text tokens, none of them padding.

    Raises:
        TypeError: no example is known for this class.
    """
    name = next((base.__name__ for base in type(model).__mro__ if base.__name__ in _INPUTS), None)
    if name is None:
        raise TypeError(
            f"no example inputs for {type(model).__name__}; known are those of {', '.join(sorted(_INPUTS))}. Call "
            "tapstudy.check(model, inputs) with inputs of your own"
        )
    if grid is None:
        # DiT takes square images only
        grid = (1, 4, 4) if name.startswith("DiT") else (3 if name.startswith(_VIDEO) else 1, 4, 6)
    parameter = next(model.parameters())
    return _INPUTS[name](_Maker(model.config, grid, text, batch, parameter.device, parameter.dtype))
