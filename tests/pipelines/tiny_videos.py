"""More pipelines of videos with tiny random parts, for the light test alone."""

from __future__ import annotations

import functools
from collections.abc import Callable

import diffusers
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    Qwen2VLConfig,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers import Qwen2VLForConditionalGeneration as Qwen2VL

from tests.pipelines import text, tiny
from tests.pipelines.tiny import CAUSAL, EIGHTH, GUIDED, HEADS, PADDED, VIDEO, Built, flow

VIDEOS: dict[str, Callable[[], Built]] = {}
factory = functools.partial(tiny.factory, table=VIDEOS)

# in place of prompts, which some pipelines clean with a package that need not be there
EMBEDDED = {"prompt_embeds": text.embedded(0), "negative_prompt_embeds": text.embedded(1)}
VISION = {"hidden_size": text.WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
LATENT = {"in_channels": 4, "out_channels": 4}
WAN = HEADS | LATENT | {"num_layers": 3, "text_dim": text.WIDTH, "freq_dim": 16, "ffn_dim": 32}


def wan_vae() -> diffusers.AutoencoderKLWan:
    return diffusers.AutoencoderKLWan(**CAUSAL, dim_mult=[1, 1, 1, 1])


def clip_vision() -> tuple[CLIPVisionModel, CLIPImageProcessor]:
    encoder = CLIPVisionModel(CLIPVisionConfig(**VISION, image_size=8, patch_size=4))
    return encoder, CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)


def gradient(height: int, width: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def unipc() -> diffusers.UniPCMultistepScheduler:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


@factory
def mochi() -> Built:
    transformer = diffusers.MochiTransformer3DModel(
        **HEADS, patch_size=2, num_layers=3, pooled_projection_dim=16, in_channels=4, text_embed_dim=text.WIDTH,
        time_embed_dim=4, max_sequence_length=text.LENGTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLMochi(
        latent_channels=4, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4,
    )  # fmt: skip
    pipe = diffusers.MochiPipeline(flow(), vae, text.t5(), text.tokenizer(), transformer)
    return pipe, GUIDED | PADDED | VIDEO | {"num_frames": 7}


@factory
def allegro() -> Built:
    transformer = diffusers.AllegroTransformer3DModel(
        **(HEADS | {"attention_head_dim": 12}), **LATENT, num_layers=3, cross_attention_dim=24, sample_height=4,
        sample_width=8, sample_frames=2, caption_channels=text.WIDTH,
    )  # fmt: skip
    vae = diffusers.AutoencoderKLAllegro(**EIGHTH)
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    pipe = diffusers.AllegroPipeline(text.tokenizer(), text.t5(), vae, transformer, scheduler)
    # the pipeline takes four frames for one of the latent, without a first one alone
    return pipe, GUIDED | PADDED | VIDEO | {"num_frames": 8, "clean_caption": False}


@factory
def easyanimate() -> Built:
    transformer = diffusers.EasyAnimateTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, **LATENT, patch_size=2, num_layers=3, mmdit_layers=2,
        time_embed_dim=8, text_embed_dim=text.WIDTH,
    )  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": text.WIDTH, "num_heads": 2, "mlp_ratio": 2}
    rope = {"type": "mrope", "mrope_section": [1, 1, 2]}
    config = Qwen2VLConfig(text_config=text.DECODER | {"rope_scaling": rope}, vision_config=vision)
    vae = diffusers.AutoencoderKLMagvit(**EIGHTH)
    words = text.tokenizer()
    words.chat_template = "{{ messages[-1]['content'][0]['text'] }}"
    pipe = diffusers.EasyAnimatePipeline(vae, Qwen2VL(config), words, transformer, flow())
    return pipe, GUIDED | VIDEO


@factory
def skyreels_v2() -> Built:
    transformer = diffusers.SkyReelsV2Transformer3DModel(**WAN)
    pipe = diffusers.SkyReelsV2Pipeline(text.tokenizer(), text.umt5(), transformer, wan_vae(), unipc())
    return pipe, EMBEDDED | VIDEO


@factory
def wan_vace() -> Built:
    transformer = diffusers.WanVACETransformer3DModel(**WAN, vace_layers=[0, 2], vace_in_channels=72)
    pipe = diffusers.WanVACEPipeline(text.tokenizer(), text.umt5(), wan_vae(), flow(), transformer)
    return pipe, EMBEDDED | VIDEO


@factory
def chronoedit() -> Built:
    transformer = diffusers.ChronoEditTransformer3DModel(
        **(WAN | {"in_channels": 12, "image_dim": text.WIDTH}), rope_temporal_skip_len=8
    )
    encoder, processor = clip_vision()
    pipe = diffusers.ChronoEditPipeline(
        text.tokenizer(), text.umt5(), encoder, processor, transformer, wan_vae(), flow(shift=5.0)
    )
    return pipe, EMBEDDED | VIDEO | {"image": torch.linspace(0, 1, 3 * 32 * 64).view(1, 3, 32, 64)}


@factory
def sana_video() -> Built:
    transformer = diffusers.SanaVideoTransformer3DModel(
        **HEADS, **LATENT, num_layers=3, num_cross_attention_heads=2, cross_attention_head_dim=8,
        cross_attention_dim=16, caption_channels=text.WIDTH,
    )  # fmt: skip
    pipe = diffusers.SanaVideoPipeline(text.tokenizer(), text.gemma2(), wan_vae(), transformer, unipc())
    size = {"height": 32, "width": 64, "frames": 5}
    return pipe, GUIDED | PADDED | size | {"use_resolution_binning": False, "complex_human_instruction": None}


@factory
def hunyuan_video15() -> Built:
    from transformers import Qwen2_5_VLTextModel

    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        **HEADS, in_channels=9, out_channels=4, num_layers=3, num_refiner_layers=1, mlp_ratio=2.0, patch_size=2,
        patch_size_t=1, text_embed_dim=text.WIDTH, text_embed_2_dim=text.WIDTH, image_embed_dim=6,
        rope_axes_dim=(2, 2, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1, downsample_match_channel=False,
        upsample_match_channel=False,
    )  # fmt: skip
    encoder = Qwen2_5_VLTextModel(text.qwen2_5_vl().config.text_config)
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0)
    pipe = diffusers.HunyuanVideo15Pipeline(
        encoder, text.tokenizer(), transformer, vae, flow(shift=7.0), text.t5(), text.tokenizer(), guider
    )
    # the stock message is cut off after 108 tokens of its own tokenizer
    pipe.system_message, pipe.prompt_template_encode_start_idx, pipe.tokenizer_max_length = "", 1, text.LENGTH
    pipe.tokenizer_2_max_length, pipe.vision_num_semantic_tokens = text.LENGTH, 2
    return pipe, GUIDED | {"height": 64, "width": 96, "num_frames": 5}


@factory
def motif_video() -> Built:
    transformer = diffusers.MotifVideoTransformer3DModel(
        **HEADS, in_channels=9, out_channels=4, num_layers=2, num_single_layers=2, mlp_ratio=2.0, patch_size=2,
        patch_size_t=1, text_embed_dim=text.WIDTH, rope_axes_dim=(2, 2, 4),
    )  # fmt: skip
    guider = diffusers.ClassifierFreeGuidance(guidance_scale=6.0)
    pipe = diffusers.MotifVideoPipeline(flow(), wan_vae(), text.t5(), text.tokenizer(), transformer, guider)
    return pipe, GUIDED | PADDED | VIDEO


@factory
def anyflow() -> Built:
    transformer = diffusers.AnyFlowTransformer3DModel(**WAN)
    scheduler = diffusers.FlowMapEulerDiscreteScheduler(shift=5.0)
    pipe = diffusers.AnyFlowPipeline(text.tokenizer(), text.umt5(), transformer, wan_vae(), scheduler)
    return pipe, GUIDED | PADDED | VIDEO | {"guidance_scale": 2.0}


@factory
def kandinsky5() -> Built:
    transformer = diffusers.Kandinsky5Transformer3DModel(
        in_visual_dim=4, in_text_dim=text.WIDTH, in_text_dim2=text.WIDTH, time_dim=16, out_visual_dim=4,
        patch_size=(1, 2, 2), model_dim=24, ff_dim=32, num_text_blocks=1, num_visual_blocks=3, axes_dims=(4, 4, 4),
    )  # fmt: skip
    vae = diffusers.AutoencoderKLHunyuanVideo(**EIGHTH)
    pipe = diffusers.Kandinsky5T2VPipeline(
        transformer, vae, text.qwen2_5_vl(), text.tokenizer(), text.clip(), text.tokenizer(), flow(shift=5.0)
    )
    # the stock message is cut off after 128 tokens of its own tokenizer
    pipe.prompt_template, pipe.prompt_template_encode_start_idx = "{}", 1
    return pipe, GUIDED | PADDED | VIDEO


@factory
def helios() -> Built:
    """One chunk of the video, with the history that comes before it."""
    transformer = diffusers.HeliosTransformer3DModel(
        **WAN, rope_dim=(4, 2, 2), has_multi_term_memory_patch=True, guidance_cross_attn=True,
        zero_history_timestep=True,
    )  # fmt: skip
    scheduler = diffusers.HeliosScheduler(stages=1, stage_range=[0, 1], gamma=1 / 3)
    pipe = diffusers.HeliosPipeline(text.tokenizer(), text.umt5(), wan_vae(), scheduler, transformer)
    window = {"num_frames": 5, "history_sizes": [4, 2, 1], "num_latent_frames_per_chunk": 2}
    return pipe, EMBEDDED | VIDEO | window


@factory
def wan_animate() -> Built:
    """One segment; the reference image is the first frame of the latent."""
    transformer = diffusers.WanAnimateTransformer3DModel(
        **(WAN | {"in_channels": 12}), latent_channels=4, image_dim=text.WIDTH,
        motion_encoder_channel_sizes={"4": 8, "8": 8, "16": 8}, motion_encoder_size=16, motion_style_dim=8,
        motion_dim=4, motion_encoder_dim=8, face_encoder_hidden_dim=8, face_encoder_num_heads=2,
        inject_face_latents_blocks=1,
    )  # fmt: skip
    encoder, processor = clip_vision()
    pipe = diffusers.WanAnimatePipeline(
        text.tokenizer(), text.umt5(), wan_vae(), unipc(), processor, encoder, transformer
    )
    videos = {"pose_video": [gradient(32, 64)] * 5, "face_video": [gradient(16, 16)] * 5}
    size = {"height": 32, "width": 64, "segment_frame_length": 5, "guidance_scale": 2.0}
    return pipe, EMBEDDED | size | videos | {"image": gradient(32, 64)}


@factory
def framepack() -> Built:
    """One window of the video; the pipeline gives latents in a list, so it decodes."""
    transformer = diffusers.HunyuanVideoFramepackTransformer3DModel(
        **HEADS, **LATENT, num_layers=2, num_single_layers=2, num_refiner_layers=1, mlp_ratio=2.0,
        text_embed_dim=text.WIDTH, pooled_projection_dim=text.WIDTH, rope_axes_dim=(2, 2, 4), has_image_proj=True,
        image_proj_dim=text.WIDTH, has_clean_x_embedder=True,
    )  # fmt: skip
    encoder = SiglipVisionModel(SiglipVisionConfig(**VISION, image_size=8, patch_size=4))
    pipe = diffusers.HunyuanVideoFramepackPipeline(
        text.llama(), text.tokenizer(), transformer, diffusers.AutoencoderKLHunyuanVideo(**EIGHTH), flow(shift=7.0),
        text.clip(), text.tokenizer(), encoder, SiglipImageProcessor(size={"height": 8, "width": 8}),
    )  # fmt: skip
    window = {"latent_window_size": 2, "true_cfg_scale": 2.0, "image": gradient(32, 64), "output_type": "np"}
    return pipe, GUIDED | PADDED | VIDEO | window | {"prompt_template": {"template": "{}", "crop_start": 1}}
