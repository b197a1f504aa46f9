"""One small random transformer per supported class, with the arguments of one call of its forward."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch
from torch import nn

from tests.instrument import tiny_images, tiny_videos
from tests.instrument.tiny import BATCH, TEXT, Tiny, captioned, mask, position_ids, random


def dit() -> Tiny:
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip
    inputs = {
        "hidden_states": random(BATCH, 4, 8, 8),
        "timestep": torch.tensor([500.0, 500.0]),
        "class_labels": torch.tensor([3, 10]),
    }
    return Tiny(model, inputs, 16)


def pixart(sizes: bool = False) -> Tiny:
    """With `sizes`, the model of 1024 x 1024, which is told how large the image is."""
    model = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=8, num_layers=3, sample_size=8,
        patch_size=2, cross_attention_dim=24, caption_channels=12, use_additional_conditions=sizes,
    )  # fmt: skip
    size = torch.tensor([[64.0, 96.0]] * BATCH) if sizes else None
    inputs = {
        **captioned(random(BATCH, 4, 8, 12)),
        "encoder_attention_mask": mask(),
        "added_cond_kwargs": {"resolution": size, "aspect_ratio": None if size is None else size[:, :1] / size[:, 1:]},
    }
    return Tiny(model, inputs, 24)


def pixart_1024() -> Tiny:
    return pixart(sizes=True)


def sd3(dual: tuple[int, ...] = ()) -> Tiny:
    model = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10,
        pos_embed_max_size=16, dual_attention_layers=dual, qk_norm="rms_norm" if dual else None,
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 4, 8, 12)),
        "pooled_projections": random(BATCH, 10),
    }
    return Tiny(model, inputs, 24)


def sd35() -> Tiny:
    return sd3(dual=(0, 1))


def flux(references: int = 0, guided: bool = True) -> Tiny:
    model = diffusers.FluxTransformer2DModel(
        in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=10, axes_dims_rope=(4, 4, 8), guidance_embeds=guided,
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 24 * (1 + references), 8), time=0.5),
        "pooled_projections": random(BATCH, 10),
        "img_ids": torch.cat([position_ids(4, 6, image=image) for image in range(1 + references)]),
        "txt_ids": torch.zeros(TEXT, 3),
        "guidance": torch.tensor([3.5, 3.5]) if guided else None,
    }
    return Tiny(model, inputs, 24, start=1.0, end=0.02)


def flux_schnell() -> Tiny:
    return flux(guided=False)


def flux2() -> Tiny:
    model = diffusers.Flux2Transformer2DModel(
        in_channels=8, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, timestep_guidance_channels=16, axes_dims_rope=(4, 4, 4, 4),
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 24, 8), time=0.5),
        "img_ids": position_ids(4, 6, columns=4),
        "txt_ids": torch.zeros(TEXT, 4),
        "guidance": torch.tensor([3.5, 3.5]),
    }
    return Tiny(model, inputs, 24, start=1.0, end=0.02)


def qwen(references: int = 0) -> Tiny:
    model = diffusers.QwenImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 24 * (1 + references), 16), time=0.5),
        "encoder_hidden_states_mask": torch.ones(BATCH, TEXT, dtype=torch.int64),
        "img_shapes": [[(1, 4, 6)] * (1 + references)] * BATCH,
    }
    return Tiny(model, inputs, 24, start=1.0, end=0.02)


def hunyuan() -> Tiny:
    model = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, patch_size=2, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=12, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 4, 3, 4, 6)),
        "encoder_attention_mask": mask(),
        "pooled_projections": random(BATCH, 8),
        "guidance": torch.tensor([6000.0, 6000.0]),
    }
    return Tiny(model, inputs, 18)


def wan(per_token: bool = False) -> Tiny:
    model = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=12,
        freq_dim=16, ffn_dim=32, num_layers=3, rope_max_seq_len=32,
    )  # fmt: skip
    timestep = torch.full((BATCH, 18), 500.0) if per_token else torch.tensor([500.0, 500.0])
    inputs = {
        "hidden_states": random(BATCH, 4, 3, 4, 6),
        "timestep": timestep,
        "encoder_hidden_states": random(BATCH, TEXT, 12),
    }
    return Tiny(model, inputs, 18)


def wan22() -> Tiny:
    return wan(per_token=True)


def cogvideox() -> Tiny:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=12, num_layers=3, sample_width=6, sample_height=4, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=TEXT,
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 3, 4, 4, 6)),
    }
    return Tiny(model, inputs, 18)


def cogvideox15() -> Tiny:
    """Patches across frames, cut without a convolution; image-to-video models embed an offset beside the timestep."""
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8, ofs_embed_dim=8,
        text_embed_dim=12, num_layers=3, patch_size=2, patch_size_t=2, max_text_seq_length=TEXT,
        use_rotary_positional_embeddings=True,
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 4, 4, 4, 6)),
        "ofs": torch.tensor([2.0]),
    }
    return Tiny(model, inputs, 12)


def ltx() -> Tiny:
    model = diffusers.LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=8, cross_attention_dim=16,
        num_layers=3, caption_channels=12,
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 18, 8)),
        "encoder_attention_mask": mask(),
        "num_frames": 3,
        "height": 2,
        "width": 3,
    }
    return Tiny(model, inputs, 18)


def sana(guided: bool = False) -> Tiny:
    model = diffusers.SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2,
        num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=12,
        sample_size=8, guidance_embeds=guided,
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 4, 4, 6)),
        "encoder_attention_mask": mask(),
        "guidance": torch.tensor([0.45, 0.45]) if guided else None,
    }
    return Tiny(model, inputs, 24)


def sana_sprint() -> Tiny:
    return sana(guided=True)


def lumina2() -> Tiny:
    model = diffusers.Lumina2Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=24, num_layers=3, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=16, axes_dim_rope=(4, 2, 2), axes_lens=(32, 16, 16),
        cap_feat_dim=12,
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, 4, 8, 12), time=0.5),
        "encoder_attention_mask": mask(),
    }
    return Tiny(model, inputs, 24, start=0.02, end=1.0)


def z_image() -> Tiny:
    model = diffusers.ZImageTransformer2DModel(
        in_channels=4, dim=32, n_layers=3, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=12,
        axes_dims=[8, 4, 4], axes_lens=[256, 16, 16],
    )  # fmt: skip
    inputs = {
        "x": [random(4, 1, 8, 12) for _ in range(BATCH)],
        "t": torch.tensor([0.5, 0.5]),
        "cap_feats": [random(TEXT, 12), random(40, 12)],
    }
    return Tiny(model, inputs, 24, latent="x", timestep="t", start=0.02, end=1.0)


FIRST: dict[str, Callable[[], Tiny]] = {
    "CogVideoX": cogvideox,
    "DiT": dit,
    "Flux": flux,
    "Flux2": flux2,
    "HunyuanVideo": hunyuan,
    "LTX": ltx,
    "Lumina2": lumina2,
    "PixArt": pixart,
    "QwenImage": qwen,
    "SD3": sd3,
    "Sana": sana,
    "Wan": wan,
    "ZImage": z_image,
}
# those that the installed diffusers has
MORE: dict[str, Callable[[], Tiny]] = {
    name: build
    for name, (kind, build) in sorted((tiny_images.CLASSES | tiny_videos.CLASSES).items())
    if hasattr(diffusers, kind)
}
CLASSES = FIRST | MORE
# one class of every kind of layout, for what the same code does on all of them; what a row says is tried on every class
KINDS = [
    name
    for name in (
        "CogVideoX",  # frames before channels
        "DiT",  # labels, no text
        "Flux",  # two stacks of blocks, packed tokens
        "Flux2",  # the second stack returns text and image in one tensor
        "FramePack",  # the image comes last
        "HiDream",  # attention inside an inner block
        "Kandinsky5",  # channels last
        "Krea2",  # text comes first in every block
        "Lumina2",  # behind captions of different lengths
        "SD3",  # text beside the image
        "Wan",  # text in cross-attention
        "ZImage",  # lists of samples
    )
    if name in CLASSES
]
VARIANTS: dict[str, Callable[[], Tiny]] = {
    **CLASSES,
    "CogVideoX1.5": cogvideox15,
    "Flux-schnell": flux_schnell,
    "PixArt-1024": pixart_1024,
    "SD3.5": sd35,
    "Sana-Sprint": sana_sprint,
    "Wan2.2": wan22,
    **{
        name: build
        for name, (kind, build) in (tiny_images.VARIANTS | tiny_videos.VARIANTS).items()
        if hasattr(diffusers, kind)
    },
}


def make(name: str, seed: int = 0) -> Tiny:
    """The model of that name, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tiny = VARIANTS[name]()
        for parameter in tiny.model.parameters():  # pad tokens, tables and biases start at zero in some classes
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    tiny.model.eval()
    return tiny
