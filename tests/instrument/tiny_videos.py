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


CLASSES: dict[str, tuple[str, Callable[[], Tiny]]] = {
    "Allegro": ("AllegroTransformer3DModel", allegro),
    "ChronoEdit": ("ChronoEditTransformer3DModel", chronoedit),
    "EasyAnimate": ("EasyAnimateTransformer3DModel", easyanimate),
    "HunyuanVideo1.5": ("HunyuanVideo15Transformer3DModel", hunyuan15),
    "Mochi": ("MochiTransformer3DModel", mochi),
    "MotifVideo": ("MotifVideoTransformer3DModel", motif),
    "SanaVideo": ("SanaVideoTransformer3DModel", sana_video),
    "SkyReelsV2": ("SkyReelsV2Transformer3DModel", skyreels),
    "WanAnimate": ("WanAnimateTransformer3DModel", wan_animate),
    "WanVACE": ("WanVACETransformer3DModel", wan_vace),
}
VARIANTS: dict[str, tuple[str, Callable[[], Tiny]]] = {
    "HunyuanVideo1.5-text": ("HunyuanVideo15Transformer3DModel", hunyuan15_text),
    "MotifVideo-decoder": ("MotifVideoTransformer3DModel", motif_decoder),
}
