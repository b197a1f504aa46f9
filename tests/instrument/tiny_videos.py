"""Small random transformers that make videos; the first classes are in `tiny_models`."""

from __future__ import annotations

from collections.abc import Callable

import diffusers
import torch

from tests.instrument.tiny import BATCH, TEXT, Tiny, captioned, mask, random

CHANNELS, FRAMES, ROWS, COLUMNS = 4, 3, 4, 6  # of a latent, cut into 3 x 2 x 3 patches


def _latent(channels: int = CHANNELS) -> torch.Tensor:
    return random(BATCH, channels, FRAMES, ROWS, COLUMNS)


_WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": 12, "freq_dim": 16, "ffn_dim": 32, "num_layers": 3, "rope_max_seq_len": 32,
}  # fmt: skip


def skyreels() -> Tiny:
    return Tiny(diffusers.SkyReelsV2Transformer3DModel(**_WAN), captioned(_latent()), 18)


def chronoedit() -> Tiny:
    model = diffusers.ChronoEditTransformer3DModel(**_WAN, rope_temporal_skip_len=8)
    return Tiny(model, captioned(_latent()), 18)


def wan_vace() -> Tiny:
    model = diffusers.WanVACETransformer3DModel(**_WAN, vace_layers=[0, 2], vace_in_channels=6)
    inputs = {
        **captioned(_latent()),
        "control_hidden_states": _latent(6),
        "control_hidden_states_scale": torch.tensor([1.0, 0.5]),
    }
    return Tiny(model, inputs, 18)


def wan_animate() -> Tiny:
    model = diffusers.WanAnimateTransformer3DModel(
        **{**_WAN, "in_channels": 12}, latent_channels=4, image_dim=10,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=8, face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )  # fmt: skip
    inputs = {
        **captioned(_latent(12)),
        "encoder_hidden_states_image": random(BATCH, 2, 10),
        "pose_hidden_states": random(BATCH, CHANNELS, FRAMES - 1, ROWS, COLUMNS),
        "face_pixel_values": random(BATCH, 3, 5, 16, 16),
    }
    return Tiny(model, inputs, 18)


def hunyuan15(image: bool = True) -> Tiny:
    model = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=3,
        num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=12, text_embed_2_dim=8,
        image_embed_dim=6, rope_axes_dim=(2, 4, 4),
    )  # fmt: skip
    inputs = {
        **captioned(_latent(9)),
        "encoder_attention_mask": mask(),
        "encoder_hidden_states_2": random(BATCH, 3, 8),
        "encoder_attention_mask_2": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "image_embeds": random(BATCH, 2, 6) if image else torch.zeros(BATCH, 2, 6),
    }
    return Tiny(model, inputs, 18)


def hunyuan15_text() -> Tiny:
    """Made of text alone."""
    return hunyuan15(image=False)


def mochi() -> Tiny:
    model = diffusers.MochiTransformer3DModel(
        patch_size=2, num_attention_heads=2, attention_head_dim=8, num_layers=3, pooled_projection_dim=16,
        in_channels=CHANNELS, text_embed_dim=16, time_embed_dim=4, max_sequence_length=TEXT,
    )  # fmt: skip
    inputs = {**captioned(_latent(), width=16), "encoder_attention_mask": mask().bool()}
    return Tiny(model, inputs, 18)


def easyanimate() -> Tiny:
    model = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=CHANNELS, out_channels=CHANNELS, patch_size=2,
        num_layers=3, mmdit_layers=2, time_embed_dim=8, text_embed_dim=12, text_embed_dim_t5=10,
    )  # fmt: skip
    return Tiny(model, {**captioned(_latent()), "encoder_hidden_states_t5": random(BATCH, 3, 10)}, 18)


def allegro() -> Tiny:
    model = diffusers.AllegroTransformer3DModel(
        patch_size=2, patch_size_t=1, num_attention_heads=2, attention_head_dim=12, in_channels=CHANNELS,
        out_channels=CHANNELS, num_layers=3, cross_attention_dim=24, sample_height=ROWS, sample_width=COLUMNS,
        sample_frames=FRAMES, caption_channels=12,
    )  # fmt: skip
    inputs = {
        **captioned(_latent()),
        "attention_mask": torch.ones(BATCH, FRAMES, ROWS, COLUMNS),
        "encoder_attention_mask": mask(),
    }
    return Tiny(model, inputs, 18)


def motif(**more: int) -> Tiny:
    model = diffusers.MotifVideoTransformer3DModel(
        in_channels=9, out_channels=4, num_attention_heads=2, attention_head_dim=10, num_layers=2, num_single_layers=2,
        mlp_ratio=2.0, patch_size=2, patch_size_t=1, text_embed_dim=12, rope_axes_dim=(2, 4, 4), **more,
    )  # fmt: skip
    inputs = {**captioned(_latent(9)), "encoder_attention_mask": mask()}
    return Tiny(model, inputs, 18)


def motif_decoder() -> Tiny:
    """The last block starts from the noisy video again, and reads what came out of the blocks before."""
    return motif(num_decoder_layers=1)


def sana_video(guided: bool = False) -> Tiny:
    model = diffusers.SanaVideoTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=2, attention_head_dim=12, num_layers=3,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=12,
        guidance_embeds=guided,
    )  # fmt: skip
    return Tiny(model, {**captioned(_latent()), "encoder_attention_mask": mask()}, 18)


def anyflow() -> Tiny:
    """Frames first; a call goes from one timestep to another."""
    model = diffusers.AnyFlowTransformer3DModel(**{**_WAN, "freq_dim": 16})
    inputs = captioned(random(BATCH, FRAMES, CHANNELS, ROWS, COLUMNS))
    inputs["timestep"] = torch.full((BATCH, FRAMES), 500.0)
    return Tiny(model, {**inputs, "r_timestep": torch.full((BATCH, FRAMES), 250.0)}, 18)


def consisid(face: bool = True) -> Tiny:
    """Between blocks it looks at a face."""
    model = diffusers.ConsisIDTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=CHANNELS, out_channels=CHANNELS, time_embed_dim=8,
        text_embed_dim=12, num_layers=3, sample_width=COLUMNS, sample_height=ROWS, sample_frames=9, patch_size=2,
        temporal_compression_ratio=4, max_text_seq_length=TEXT, cross_attn_interval=1, is_train_face=face,
        cross_attn_dim_head=8, cross_attn_num_heads=1, LFE_id_dim=4, LFE_vit_dim=4, LFE_depth=5, LFE_dim_head=8,
        LFE_num_heads=2, LFE_num_id_token=1, LFE_num_querie=1, LFE_output_dim=21, LFE_ff_mult=1, LFE_num_scale=1,
    )  # fmt: skip
    inputs = captioned(random(BATCH, FRAMES, CHANNELS, ROWS, COLUMNS))
    if face:
        inputs |= {"id_vit_hidden": [random(BATCH, 2, 4)], "id_cond": random(BATCH, 4)}
    return Tiny(model, inputs, 18)


def consisid_faceless() -> Tiny:
    return consisid(face=False)


def cosmos(positions: str | None = "learnable") -> Tiny:
    model = diffusers.CosmosTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=2, attention_head_dim=12, num_layers=3,
        mlp_ratio=2.0, text_embed_dim=12, adaln_lora_dim=4, max_size=(4, 16, 16), concat_padding_mask=False,
        extra_pos_embed_type=positions,
    )  # fmt: skip
    return Tiny(model, {**captioned(_latent()), "fps": 30}, 18)


def framepack() -> Tiny:
    """Earlier frames of several sizes in front of the video."""
    model = diffusers.HunyuanVideoFramepackTransformer3DModel(
        in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=2, attention_head_dim=10, num_layers=2,
        num_single_layers=2, num_refiner_layers=1, mlp_ratio=2.0, patch_size=2, patch_size_t=1, guidance_embeds=True,
        text_embed_dim=12, pooled_projection_dim=8, rope_axes_dim=(2, 4, 4), has_image_proj=True, image_proj_dim=6,
        has_clean_x_embedder=True,
    )  # fmt: skip
    inputs = {
        **captioned(_latent()),
        "encoder_attention_mask": mask(),
        "pooled_projections": random(BATCH, 8),
        "guidance": torch.full((BATCH,), 6000.0),
        "image_embeds": random(BATCH, 2, 6),
        "indices_latents": torch.arange(7, 7 + FRAMES),
        "latents_clean": random(BATCH, CHANNELS, 1, ROWS, COLUMNS),
        "indices_latents_clean": torch.arange(6, 7),
        "latents_history_2x": random(BATCH, CHANNELS, 2, ROWS, COLUMNS),
        "indices_latents_history_2x": torch.arange(4, 6),
        "latents_history_4x": random(BATCH, CHANNELS, 4, ROWS, COLUMNS),
        "indices_latents_history_4x": torch.arange(4),
    }
    return Tiny(model, inputs, 18)


def helios() -> Tiny:
    """The same in another order."""
    model = diffusers.HeliosTransformer3DModel(
        **{name: value for name, value in _WAN.items() if name != "rope_max_seq_len"}, rope_dim=(4, 4, 4),
        has_multi_term_memory_patch=True, guidance_cross_attn=True, zero_history_timestep=True,
    )  # fmt: skip
    inputs = {
        **captioned(_latent()),
        "indices_hidden_states": torch.arange(7, 7 + FRAMES).expand(BATCH, -1),
        "latents_history_short": random(BATCH, CHANNELS, 1, ROWS, COLUMNS),
        "indices_latents_history_short": torch.arange(6, 7).expand(BATCH, -1),
        "latents_history_mid": random(BATCH, CHANNELS, 2, ROWS, COLUMNS),
        "indices_latents_history_mid": torch.arange(4, 6).expand(BATCH, -1),
        "latents_history_long": random(BATCH, CHANNELS, 4, ROWS, COLUMNS),
        "indices_latents_history_long": torch.arange(4).expand(BATCH, -1),
    }
    return Tiny(model, inputs, 18)


def kandinsky5() -> Tiny:
    """Channels last, and in the tail the rows and columns of the video."""
    model = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=CHANNELS, in_text_dim=12, in_text_dim2=8, time_dim=16, out_visual_dim=CHANNELS,
        patch_size=(1, 2, 2), model_dim=24, ff_dim=32, num_text_blocks=1, num_visual_blocks=3, axes_dims=(4, 4, 4),
    )  # fmt: skip
    inputs = {
        **captioned(random(BATCH, FRAMES, ROWS, COLUMNS, CHANNELS)),
        "pooled_projections": random(BATCH, 8),
        "visual_rope_pos": [torch.arange(3), torch.arange(2), torch.arange(3)],
        "text_rope_pos": torch.arange(TEXT),
    }
    return Tiny(model, inputs, 18)


CLASSES: dict[str, tuple[str, Callable[[], Tiny]]] = {
    "Allegro": ("AllegroTransformer3DModel", allegro),
    "AnyFlow": ("AnyFlowTransformer3DModel", anyflow),
    "ChronoEdit": ("ChronoEditTransformer3DModel", chronoedit),
    "ConsisID": ("ConsisIDTransformer3DModel", consisid),
    "Cosmos": ("CosmosTransformer3DModel", cosmos),
    "EasyAnimate": ("EasyAnimateTransformer3DModel", easyanimate),
    "FramePack": ("HunyuanVideoFramepackTransformer3DModel", framepack),
    "Helios": ("HeliosTransformer3DModel", helios),
    "HunyuanVideo1.5": ("HunyuanVideo15Transformer3DModel", hunyuan15),
    "Kandinsky5": ("Kandinsky5Transformer3DModel", kandinsky5),
    "Mochi": ("MochiTransformer3DModel", mochi),
    "MotifVideo": ("MotifVideoTransformer3DModel", motif),
    "SanaVideo": ("SanaVideoTransformer3DModel", sana_video),
    "SkyReelsV2": ("SkyReelsV2Transformer3DModel", skyreels),
    "WanAnimate": ("WanAnimateTransformer3DModel", wan_animate),
    "WanVACE": ("WanVACETransformer3DModel", wan_vace),
}
VARIANTS: dict[str, tuple[str, Callable[[], Tiny]]] = {
    "ConsisID-faceless": ("ConsisIDTransformer3DModel", consisid_faceless),
    "HunyuanVideo1.5-text": ("HunyuanVideo15Transformer3DModel", hunyuan15_text),
    "MotifVideo-decoder": ("MotifVideoTransformer3DModel", motif_decoder),
}
