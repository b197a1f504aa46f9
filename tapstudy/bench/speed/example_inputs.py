"""Random arguments for one call of a supported transformer, of any size, on any device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.layouts import Grid

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
        """Return one number per sample."""
        return torch.full((self.batch,), value, device=self.device, dtype=self.dtype)

    def mask(self) -> Tensor:
        """Mark no text token as padding."""
        return torch.ones(self.batch, self.text, device=self.device, dtype=torch.int64)

    def position_ids(self, columns: int) -> Tensor:
        """Return (image, row, column, ...) of every image token."""
        frames, height, width = self.grid
        ids = torch.zeros(frames, height, width, columns, device=self.device)
        ids[..., 1] += torch.arange(height, device=self.device)[:, None]
        ids[..., 2] += torch.arange(width, device=self.device)
        return ids.flatten(0, 2)

    @property
    def pixels(self) -> tuple[int, int]:
        """Return rows and columns of a latent that is cut into square patches."""
        return self.grid[1] * self.config.patch_size, self.grid[2] * self.config.patch_size

    @property
    def latent(self) -> Tensor:
        """Return a latent that is cut into square patches."""
        return self.random(self.config.in_channels, *self.pixels)

    @property
    def frames(self) -> tuple[int, int, int]:
        """Return frames, rows and columns of a latent that is cut into patches of any kind."""
        patch = self.config.patch_size
        sizes = patch if isinstance(patch, tuple | list) else (self.config.get("patch_size_t") or 1, patch, patch)
        frames, height, width = (count * size for count, size in zip(self.grid, sizes, strict=True))
        return frames, height, width

    @property
    def video(self) -> Tensor:
        """Return a latent that is cut into patches of any kind."""
        return self.random(self.config.in_channels, *self.frames)

    @property
    def tokens(self) -> Tensor:
        """Return a latent that is tokens already."""
        return self.random(prod(self.grid), self.config.in_channels)

    def captioned(self, latent: Tensor, time: float, width: str) -> dict[str, Any]:
        """Tell what most models take: a latent, a time, text whose width is a field of the configuration."""
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
    frames = make.grid[0] * (config.get("patch_size_t") or 1)
    inputs: dict[str, Any] = {
        "hidden_states": make.random(frames, config.in_channels, *make.pixels),
        "timestep": make.constant(500.0),
        # learned and sinusoidal positions are laid out for text of this length, padding included
        "encoder_hidden_states": make.random(config.max_text_seq_length, config.text_embed_dim),
    }
    if config.use_rotary_positional_embeddings:
        shape = prod(make.grid), config.attention_head_dim
        inputs["image_rotary_emb"] = tuple(torch.ones(shape, device=make.device) for _ in range(2))
    if config.get("ofs_embed_dim"):
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
    return make.captioned(make.video, 500.0, "text_dim")


def _wan_animate(make: _Maker) -> dict[str, Any]:
    config, (frames, height, width) = make.config, make.frames
    inputs = _wan(make) | {
        "pose_hidden_states": make.random(config.latent_channels, frames - 1, height, width),
        # four frames of the face become one of the latent
        "face_pixel_values": make.random(3, 4 * (frames - 1), config.motion_encoder_size, config.motion_encoder_size),
    }
    return inputs | ({"encoder_hidden_states_image": make.random(4, config.image_dim)} if config.image_dim else {})


def _masked_video(make: _Maker) -> dict[str, Any]:
    return make.captioned(make.video, 500.0, "text_embed_dim") | {"encoder_attention_mask": make.mask()}


def _packed(make: _Maker) -> dict[str, Any]:
    return make.captioned(make.tokens, 0.5, "joint_attention_dim") | make.positions(3)


def _bria(make: _Maker) -> dict[str, Any]:
    return _packed(make) | {"timestep": make.constant(500.0)}


def _bria_fibo(make: _Maker) -> dict[str, Any]:
    blocks = make.config.num_layers + make.config.num_single_layers
    return _bria(make) | {
        "text_encoder_layers": [make.random(make.text, make.config.text_encoder_dim) for _ in range(blocks)]
    }


def _cogview(make: _Maker) -> dict[str, Any]:
    height, width = make.pixels
    size = torch.tensor([[8.0 * height, 8.0 * width]] * make.batch, device=make.device, dtype=make.dtype)
    sizes = {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
    return make.captioned(make.latent, 500.0, "text_embed_dim") | sizes


def _glm_image(make: _Maker) -> dict[str, Any]:
    inputs, shape = _cogview(make), (make.batch, prod(make.grid))
    del inputs["original_size"]
    return inputs | {
        "prior_token_id": torch.zeros(shape, device=make.device, dtype=torch.int64),
        "prior_token_drop": torch.zeros(shape, dtype=torch.bool),
    }


def _hidream(make: _Maker) -> dict[str, Any]:
    config = make.config
    t5, llama = config.caption_channels
    return {
        "hidden_states": make.latent, "timesteps": make.constant(500.0),
        "encoder_hidden_states_t5": make.random(make.text, t5),
        "encoder_hidden_states_llama3": [make.random(make.text, llama) for _ in range(1 + max(config.llama_layers))],
        "pooled_embeds": make.random(config.text_emb_dim),
    }  # fmt: skip


def _hunyuan_dit(make: _Maker) -> dict[str, Any]:
    config = make.config  # texts are padded to lengths of its own
    height, width = make.pixels
    inputs = make.captioned(make.latent, 500.0, "cross_attention_dim") | {
        "encoder_hidden_states": make.random(config.text_len, config.cross_attention_dim),
        "encoder_hidden_states_t5": make.random(config.text_len_t5, config.cross_attention_dim_t5),
        "text_embedding_mask": torch.ones(make.batch, config.text_len, device=make.device, dtype=torch.int64),
        "text_embedding_mask_t5": torch.ones(make.batch, config.text_len_t5, device=make.device, dtype=torch.int64),
        "image_rotary_emb": tuple(
            torch.ones(prod(make.grid), config.attention_head_dim, device=make.device) for _ in range(2)
        ),
    }
    if config.use_style_cond_and_image_meta_size:
        size = [8.0 * height, 8.0 * width, 8.0 * height, 8.0 * width, 0.0, 0.0]
        inputs["image_meta_size"] = torch.tensor([size] * make.batch, device=make.device, dtype=make.dtype)
        inputs["style"] = torch.zeros(make.batch, device=make.device, dtype=torch.int64)
    return inputs


def _hunyuan_video15(make: _Maker) -> dict[str, Any]:
    config = make.config
    return make.captioned(make.video, 500.0, "text_embed_dim") | {
        "encoder_attention_mask": make.mask(),
        "encoder_hidden_states_2": make.random(4, config.text_embed_2_dim),
        "encoder_attention_mask_2": torch.ones(make.batch, 4, device=make.device, dtype=torch.int64),
        "image_embeds": make.random(4, config.image_embed_dim),
    }


def _anyflow(make: _Maker) -> dict[str, Any]:
    inputs, frames = _wan(make), make.frames[0]
    times = {name: make.constant(time)[:, None].repeat(1, frames) for name, time in _ANYFLOW_TIMES.items()}
    return inputs | {"hidden_states": inputs["hidden_states"].transpose(1, 2)} | times


_ANYFLOW_TIMES = {"timestep": 500.0, "r_timestep": 250.0}


def _consisid(make: _Maker) -> dict[str, Any]:
    config = make.config
    inputs = _cogvideox(make)
    if config.is_train_face:
        inputs["id_cond"] = make.random(config.LFE_id_dim)
        inputs["id_vit_hidden"] = [make.random(4, config.LFE_vit_dim) for _ in range(config.LFE_num_scale)]
    return inputs


def _history(make: _Maker, names: tuple[str, str, str], *, batched: bool) -> dict[str, Any]:
    """Return one, two and four frames that came before."""
    made: dict[str, Any] = {}
    for name, count, start in zip(names, (1, 2, 4), (6, 4, 0), strict=True):
        indices = torch.arange(start, start + count, device=make.device)
        made[name] = make.random(make.config.in_channels, count, *make.frames[1:])
        made[f"indices_{name}"] = indices.expand(make.batch, -1) if batched else indices
    return made


def _framepack(make: _Maker) -> dict[str, Any]:
    names = ("latents_clean", "latents_history_2x", "latents_history_4x")
    return {
        **_masked_video(make), **make.pooled(), **make.guidance(6000.0), **_history(make, names, batched=False),
        "image_embeds": make.random(4, make.config.image_proj_dim),
        "indices_latents": torch.arange(7, 7 + make.frames[0], device=make.device),
    }  # fmt: skip


def _helios(make: _Maker) -> dict[str, Any]:
    names = ("latents_history_short", "latents_history_mid", "latents_history_long")
    indices = torch.arange(7, 7 + make.frames[0], device=make.device).expand(make.batch, -1)
    return _wan(make) | {"indices_hidden_states": indices} | _history(make, names, batched=True)


def _kandinsky5(make: _Maker) -> dict[str, Any]:
    config, (frames, height, width) = make.config, make.frames
    channels = 2 * config.in_visual_dim + 1 if config.visual_cond else config.in_visual_dim
    return {
        "hidden_states": make.random(frames, height, width, channels), "timestep": make.constant(500.0),
        "encoder_hidden_states": make.random(make.text, config.in_text_dim),
        "pooled_projections": make.random(config.in_text_dim2),
        "visual_rope_pos": [torch.arange(count, device=make.device) for count in make.grid],
        "text_rope_pos": torch.arange(make.text, device=make.device),
    }  # fmt: skip


def _krea2(make: _Maker) -> dict[str, Any]:
    config = make.config
    positions = torch.cat([torch.zeros(make.text, 3, device=make.device), make.position_ids(3)])
    return {
        "hidden_states": make.tokens, "timestep": make.constant(0.5), "position_ids": positions,
        "encoder_hidden_states": make.random(make.text, config.num_text_layers, config.text_hidden_dim),
        "encoder_attention_mask": make.mask().bool(),
    }  # fmt: skip


def _lumina_next(make: _Maker) -> dict[str, Any]:
    config, side = make.config, 4 * max(make.grid)  # of a table that is larger than the image
    angles = torch.zeros(side, side, config.hidden_size // config.num_attention_heads // 2, device=make.device)
    return make.captioned(make.latent, 0.5, "cross_attention_dim") | {
        "encoder_mask": make.mask(),
        "image_rotary_emb": torch.polar(torch.ones_like(angles), angles),
        "cross_attention_kwargs": {},
    }


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
    "AllegroTransformer3DModel": lambda make: {
        **make.captioned(make.video, 500.0, "caption_channels"), "encoder_attention_mask": make.mask(),
    },
    "AnyFlowTransformer3DModel": _anyflow,
    "AuraFlowTransformer2DModel": lambda make: make.captioned(make.latent, 0.5, "joint_attention_dim"),
    "BriaFiboTransformer2DModel": _bria_fibo,
    "BriaTransformer2DModel": _bria,
    "ChromaTransformer2DModel": _packed,
    "ChronoEditTransformer3DModel": _wan,
    "CogVideoXTransformer3DModel": _cogvideox,
    "CogView3PlusTransformer2DModel": _cogview,
    "CogView4Transformer2DModel": _cogview,
    "ConsisIDTransformer3DModel": _consisid,
    "CosmosTransformer3DModel": lambda make: {**make.captioned(make.video, 500.0, "text_embed_dim"), "fps": 30},
    "DiTTransformer2DModel": lambda make: {
        "hidden_states": make.latent, "timestep": make.constant(500.0),
        "class_labels": torch.zeros(make.batch, device=make.device, dtype=torch.int64),
    },
    "EasyAnimateTransformer3DModel": lambda make: make.captioned(make.video, 500.0, "text_embed_dim"),
    "Flux2Transformer2DModel": lambda make: {
        **make.captioned(make.tokens, 0.5, "joint_attention_dim"), **make.positions(4), **make.guidance(3.5),
    },
    "FluxTransformer2DModel": lambda make: {
        **_packed(make), **make.guidance(3.5), **make.pooled(),
    },
    "GlmImageTransformer2DModel": _glm_image,
    "HeliosTransformer3DModel": _helios,
    "HiDreamImageTransformer2DModel": _hidream,
    "HunyuanDiT2DModel": _hunyuan_dit,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video15,
    "HunyuanVideoFramepackTransformer3DModel": _framepack,
    "HunyuanVideoTransformer3DModel": lambda make: {
        **_masked_video(make), **make.pooled(), **make.guidance(6000.0),
    },
    "JoyImageEditTransformer3DModel": _wan,
    "Kandinsky5Transformer3DModel": _kandinsky5,
    "Krea2Transformer2DModel": _krea2,
    "LTXVideoTransformer3DModel": lambda make: {
        **make.captioned(make.tokens, 500.0, "caption_channels"), "encoder_attention_mask": make.mask(),
        **dict(zip(("num_frames", "height", "width"), make.grid, strict=True)),
    },
    "LongCatImageTransformer2DModel": _packed,
    "Lumina2Transformer2DModel": lambda make: {
        **make.captioned(make.latent, 0.5, "cap_feat_dim"), "encoder_attention_mask": make.mask(),
    },
    "LuminaNextDiT2DModel": _lumina_next,
    "MochiTransformer3DModel": _masked_video,
    "MotifVideoTransformer3DModel": _masked_video,
    "NucleusMoEImageTransformer2DModel": lambda make: {
        **make.captioned(make.tokens, 0.5, "joint_attention_dim"), "encoder_hidden_states_mask": make.mask(),
        "img_shapes": [make.grid] * make.batch,
    },
    "OvisImageTransformer2DModel": _packed,
    "PRXTransformer2DModel": lambda make: {
        **make.captioned(make.latent, 0.5, "context_in_dim"), "attention_mask": make.mask(),
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
    "SanaVideoTransformer3DModel": lambda make: {
        **make.captioned(make.video, 500.0, "caption_channels"), "encoder_attention_mask": make.mask(),
        **make.guidance(4.5),
    },
    "SkyReelsV2Transformer3DModel": _wan,
    "WanAnimateTransformer3DModel": _wan_animate,
    "WanTransformer3DModel": _wan,
    "WanVACETransformer3DModel": lambda make: {
        **_wan(make), "control_hidden_states": make.random(make.config.vace_in_channels, *make.frames),
    },
    "ZImageTransformer2DModel": _z_image,
}  # fmt: skip
_SQUARE = ("DiT", "HiDream")  # takes such images only, or pads others to a size that the configuration gives


def example_inputs(model: nn.Module, grid: Grid | None = None, *, text: int = 8, batch: int = BATCH) -> dict[str, Any]:
    """Return keyword arguments for one call of `model.forward`, on its device and in its dtype.

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
        video = "Transformer3D" in name and not name.startswith("JoyImage")
        grid = (1, 4, 4) if name.startswith(_SQUARE) else (3 if video else 1, 4, 6)
    parameter = next(model.parameters())
    return _INPUTS[name](_Maker(model.config, grid, text, batch, parameter.device, parameter.dtype))
