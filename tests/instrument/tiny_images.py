"""Small random transformers that make images; the first classes are in `tiny_models`."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch

from tests.instrument.tiny import BATCH, TEXT, Tiny, captioned, mask, position_ids, random

CHANNELS, ROWS, COLUMNS = 4, 8, 12  # of a latent, cut into 4 x 6 patches


def _latent() -> torch.Tensor:
    return random(BATCH, CHANNELS, ROWS, COLUMNS)


def _packed(model: torch.nn.Module, **more: object) -> Tiny:
    """Two stacks of blocks, tokens with position ids."""
    inputs = {
        **captioned(random(BATCH, 24, 8), time=0.5),
        "img_ids": position_ids(4, 6),
        "txt_ids": torch.zeros(TEXT, 3),
        **more,
    }
    return Tiny(model, inputs, 24, start=1.0, end=0.02)


_PACKED = {
    "in_channels": 8, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 2,
    "joint_attention_dim": 12, "axes_dims_rope": (4, 4, 8),
}  # fmt: skip


def chroma() -> Tiny:
    model = diffusers.ChromaTransformer2DModel(
        **_PACKED, approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1
    )
    return _packed(model, attention_mask=torch.cat([mask(), torch.ones(BATCH, 24)], dim=1).bool())


def bria() -> Tiny:
    tiny = _packed(diffusers.BriaTransformer2DModel(**_PACKED), timestep=torch.full((BATCH,), 500.0))
    return Tiny(tiny.model, tiny.inputs, 24)


def bria_fibo() -> Tiny:
    model = diffusers.BriaFiboTransformer2DModel(**_PACKED, text_encoder_dim=10)
    layers = [random(BATCH, TEXT, 10) for _ in range(4)]  # one for every block
    tiny = _packed(model, timestep=torch.full((BATCH,), 500.0), text_encoder_layers=layers)
    return Tiny(tiny.model, tiny.inputs, 24)


def longcat() -> Tiny:
    return _packed(diffusers.LongCatImageTransformer2DModel(**_PACKED))


def ovis() -> Tiny:
    return _packed(diffusers.OvisImageTransformer2DModel(**_PACKED, out_channels=8))


def auraflow() -> Tiny:
    model = diffusers.AuraFlowTransformer2DModel(
        sample_size=12, patch_size=2, in_channels=CHANNELS, num_mmdit_layers=2, num_single_dit_layers=2,
        attention_head_dim=8, num_attention_heads=2, joint_attention_dim=12, caption_projection_dim=16,
        out_channels=CHANNELS, pos_embed_max_size=64,
    )  # fmt: skip
    return Tiny(model, captioned(_latent(), time=0.5), 24, start=1.0, end=0.02)


def _sizes() -> dict[str, torch.Tensor]:
    sizes = {"original_size": (64.0, 96.0), "target_size": (64.0, 96.0), "crop_coords": (0.0, 0.0)}
    return {name: torch.tensor([size] * BATCH) for name, size in sizes.items()}


def cogview3plus() -> Tiny:
    model = diffusers.CogView3PlusTransformer2DModel(
        patch_size=2, in_channels=CHANNELS, num_layers=3, attention_head_dim=8, num_attention_heads=2, out_channels=4,
        text_embed_dim=12, time_embed_dim=8, condition_dim=2, pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    return Tiny(model, {**captioned(_latent()), **_sizes()}, 24)


def cogview4() -> Tiny:
    model = diffusers.CogView4Transformer2DModel(
        patch_size=2, in_channels=CHANNELS, num_layers=3, attention_head_dim=8, num_attention_heads=2, out_channels=4,
        text_embed_dim=12, time_embed_dim=8, condition_dim=4,
    )  # fmt: skip
    return Tiny(model, {**captioned(_latent()), **_sizes()}, 24)


def glm_image() -> Tiny:
    model = diffusers.GlmImageTransformer2DModel(
        patch_size=2, in_channels=CHANNELS, num_layers=3, attention_head_dim=8, num_attention_heads=2, out_channels=4,
        text_embed_dim=12, time_embed_dim=8, condition_dim=4, prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip
    sizes = _sizes()
    inputs = {
        **captioned(_latent()),
        "prior_token_id": torch.arange(BATCH * 24).view(BATCH, 24) % 16,
        "prior_token_drop": torch.tensor([[False] * 24, [True] * 24]),
        "target_size": sizes["target_size"],
        "crop_coords": sizes["crop_coords"],
    }
    return Tiny(model, inputs, 24)


def hidream(columns: int = ROWS) -> Tiny:
    """Images that are not square are padded to the largest size."""
    model = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS, num_layers=2, num_single_layers=2,
        attention_head_dim=8, num_attention_heads=2, caption_channels=[12, 10], text_emb_dim=6, num_routed_experts=2,
        num_activated_experts=1, axes_dims_rope=(4, 2, 2), max_resolution=(16, 8), llama_layers=[0, 1, 1, 0],
    )  # fmt: skip
    inputs = {
        "hidden_states": random(BATCH, CHANNELS, ROWS, columns),
        "timesteps": torch.full((BATCH,), 500.0),
        "encoder_hidden_states_t5": random(BATCH, TEXT, 12),
        "encoder_hidden_states_llama3": random(2, BATCH, TEXT, 10),
        "pooled_embeds": random(BATCH, 6),
    }
    return Tiny(model, inputs, 2 * columns, timestep="timesteps")


def hidream_wide() -> Tiny:
    return hidream(COLUMNS)


def prx() -> Tiny:
    model = diffusers.PRXTransformer2DModel(
        in_channels=CHANNELS, patch_size=2, context_in_dim=12, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=3,
        axes_dim=[4, 4],
    )  # fmt: skip
    inputs = {**captioned(_latent(), time=0.5), "attention_mask": mask()}
    return Tiny(model, inputs, 24, start=1.0, end=0.02)


def nucleus(experts: bool = True) -> Tiny:
    model = diffusers.NucleusMoEImageTransformer2DModel(
        patch_size=2, in_channels=16, out_channels=4, num_layers=3, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=12, axes_dims_rope=(4, 4, 8), mlp_ratio=8.0, moe_enabled=experts,
        dense_moe_strategy="all_moe", num_experts=4, moe_intermediate_dim=16, capacity_factors=2.0,
    )  # fmt: skip
    for parameter in model.parameters():  # those of the experts are whatever was in memory
        torch.nn.init.normal_(parameter, std=0.2)
    inputs = {
        **captioned(random(BATCH, 24, 16), time=0.5),
        "encoder_hidden_states_mask": mask(),
        "img_shapes": [(1, 4, 6)] * BATCH,
    }
    return Tiny(model, inputs, 24, start=1.0, end=0.02)


def joyimage(items: int = 0) -> Tiny:
    """With `items`, images beside the one being made, which comes last in the latent."""
    model = diffusers.JoyImageEditTransformer3DModel(
        patch_size=[1, 2, 2], in_channels=CHANNELS, hidden_size=32, num_attention_heads=2, text_dim=12,
        mlp_width_ratio=2.0, num_layers=3, rope_dim_list=[4, 6, 6],
    )  # fmt: skip
    shape = (BATCH, 1 + items, CHANNELS, 1, ROWS, COLUMNS) if items else (BATCH, CHANNELS, 1, ROWS, COLUMNS)
    return Tiny(model, captioned(random(*shape)), 24)


def joyimage_edit() -> Tiny:
    return joyimage(items=1)


def hunyuan_dit() -> Tiny:
    model = diffusers.HunyuanDiT2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=CHANNELS, patch_size=2, sample_size=8, hidden_size=16,
        num_layers=4, mlp_ratio=2.0, cross_attention_dim=12, cross_attention_dim_t5=16, pooled_projection_dim=6,
        text_len=TEXT, text_len_t5=3,
    )  # fmt: skip
    angles = torch.arange(24.0)[:, None] * torch.ones(8)
    inputs = {
        **captioned(_latent()),
        "text_embedding_mask": mask(),
        "encoder_hidden_states_t5": random(BATCH, 3, 16),
        "text_embedding_mask_t5": torch.tensor([[1, 1, 1], [1, 0, 0]]),
        "image_meta_size": torch.tensor([[64, 96, 64, 96, 0, 0]] * BATCH, dtype=torch.float32),
        "style": torch.zeros(BATCH, dtype=torch.int64),
        "image_rotary_emb": (angles.cos(), angles.sin()),
    }
    return Tiny(model, inputs, 24)


def lumina_next() -> Tiny:
    model = diffusers.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=CHANNELS, hidden_size=24, num_layers=3, num_attention_heads=3,
        num_kv_heads=1, multiple_of=16, cross_attention_dim=12,
    )  # fmt: skip
    torch.nn.init.zeros_(model.pad_token)  # else it is whatever was in memory
    angles = torch.arange(16.0)[:, None, None] + torch.arange(16.0)[:, None]
    inputs = {
        **captioned(_latent(), time=0.5),
        "encoder_mask": mask(),
        "image_rotary_emb": torch.polar(torch.ones(16, 16, 4), angles.expand(16, 16, 4)),
        "cross_attention_kwargs": {},
    }
    return Tiny(model, inputs, 24, start=0.02, end=1.0)


CLASSES: dict[str, tuple[str, Callable[[], Tiny]]] = {
    "AuraFlow": ("AuraFlowTransformer2DModel", auraflow),
    "Bria": ("BriaTransformer2DModel", bria),
    "BriaFibo": ("BriaFiboTransformer2DModel", bria_fibo),
    "Chroma": ("ChromaTransformer2DModel", chroma),
    "CogView3Plus": ("CogView3PlusTransformer2DModel", cogview3plus),
    "CogView4": ("CogView4Transformer2DModel", cogview4),
    "GlmImage": ("GlmImageTransformer2DModel", glm_image),
    "HiDream": ("HiDreamImageTransformer2DModel", hidream),
    "HunyuanDiT": ("HunyuanDiT2DModel", hunyuan_dit),
    "JoyImage": ("JoyImageEditTransformer3DModel", joyimage),
    "LongCat": ("LongCatImageTransformer2DModel", longcat),
    "LuminaNext": ("LuminaNextDiT2DModel", lumina_next),
    "NucleusMoE": ("NucleusMoEImageTransformer2DModel", nucleus),
    "Ovis": ("OvisImageTransformer2DModel", ovis),
    "PRX": ("PRXTransformer2DModel", prx),
}
VARIANTS: dict[str, tuple[str, Callable[[], Tiny]]] = {
    "HiDream-wide": ("HiDreamImageTransformer2DModel", hidream_wide),
    "JoyImage-edit": ("JoyImageEditTransformer3DModel", joyimage_edit),
}
