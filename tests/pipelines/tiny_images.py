"""More pipelines of images with tiny random parts, for the light test alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertModel,
    GemmaConfig,
    GemmaModel,
    GlmConfig,
    GlmModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Model,
)

from tests.pipelines import text, tiny
from tests.pipelines.tiny import CAUSAL, GUIDED, HEADS, IMAGE, PADDED, Built, flow, image_vae

IMAGES: dict[str, Callable[[], Built]] = {}
factory = functools.partial(tiny.factory, table=IMAGES)

LATENT = {"patch_size": 2, "in_channels": 4, "out_channels": 4}
PACKED = HEADS | {"num_layers": 2, "num_single_layers": 2, "in_channels": 16, "axes_dims_rope": (2, 2, 4)}
WIDE = {"height": 16, "width": 32}
# goes with embedded prompts
MASKED = {f"{name}prompt_embeds_mask": torch.ones(1, text.LENGTH).bool() for name in ("", "negative_")}
DIFFUSION = {"prediction_type": "v_prediction"}


def unshifted_vae() -> diffusers.AutoencoderKL:
    return image_vae(shift_factor=0.0)


@factory
def aura_flow() -> Built:
    transformer = diffusers.AuraFlowTransformer2DModel(
        **HEADS, **LATENT, sample_size=12, num_mmdit_layers=2, num_single_dit_layers=2, joint_attention_dim=text.WIDTH,
        caption_projection_dim=16, pos_embed_max_size=144,
    )  # fmt: skip
    pipe = diffusers.AuraFlowPipeline(text.tokenizer(), text.umt5(), image_vae(), transformer, flow())
    return pipe, GUIDED | IMAGE | PADDED


@factory
def bria() -> Built:
    transformer = diffusers.BriaTransformer2DModel(**PACKED, joint_attention_dim=text.WIDTH)
    pipe = diffusers.BriaPipeline(transformer, flow(), unshifted_vae(), text.t5(), text.tokenizer())
    # the pipeline counts one level more than the autoencoder has
    return pipe, GUIDED | PADDED | {"height": 32, "width": 48}


@factory
def bria_fibo() -> Built:
    from transformers import SmolLM3Config, SmolLM3ForCausalLM

    transformer = diffusers.BriaFiboTransformer2DModel(
        **(PACKED | {"in_channels": 4}), joint_attention_dim=2 * text.WIDTH, text_encoder_dim=text.WIDTH
    )
    encoder = SmolLM3ForCausalLM(SmolLM3Config(**text.DECODER))
    vae = diffusers.AutoencoderKLWan(**CAUSAL, dim_mult=[1, 1, 1, 1])
    pipe = diffusers.BriaFiboPipeline(transformer, flow(use_dynamic_shifting=True), vae, encoder, text.tokenizer())
    return pipe, GUIDED | PADDED | {"height": 64, "width": 96}


@factory
def chroma() -> Built:
    transformer = diffusers.ChromaTransformer2DModel(
        **PACKED, joint_attention_dim=text.WIDTH, approximator_num_channels=16, approximator_hidden_dim=16,
        approximator_layers=1,
    )  # fmt: skip
    pipe = diffusers.ChromaPipeline(flow(), unshifted_vae(), text.t5(), text.tokenizer(), transformer)
    return pipe, GUIDED | IMAGE | PADDED


@factory
def cogview3plus() -> Built:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        **HEADS, **LATENT, num_layers=3, text_embed_dim=text.WIDTH, time_embed_dim=8, condition_dim=2,
        pos_embed_max_size=8, sample_size=8,
    )  # fmt: skip
    scheduler = diffusers.CogVideoXDDIMScheduler(**DIFFUSION, rescale_betas_zero_snr=True)
    pipe = diffusers.CogView3PlusPipeline(text.tokenizer(), text.t5(), image_vae(), transformer, scheduler)
    return pipe, GUIDED | IMAGE | PADDED


@factory
def cogview4() -> Built:
    transformer = diffusers.CogView4Transformer2DModel(
        **HEADS, **LATENT, num_layers=3, text_embed_dim=text.WIDTH, time_embed_dim=8, condition_dim=4
    )
    encoder = GlmModel(GlmConfig(**text.DECODER))
    scheduler = flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear")
    pipe = diffusers.CogView4Pipeline(text.tokenizer(), encoder, image_vae(), transformer, scheduler)
    return pipe, GUIDED | WIDE | PADDED


@factory
def longcat_image() -> Built:
    # the pipeline takes every autoencoder to have 16 channels
    transformer = diffusers.LongCatImageTransformer2DModel(
        **(PACKED | {"in_channels": 64}), joint_attention_dim=text.WIDTH
    )
    pipe = diffusers.LongCatImagePipeline(
        flow(use_dynamic_shifting=True), unshifted_vae(), text.qwen2_5_vl(), text.tokenizer(), None, transformer
    )
    pipe.tokenizer_max_length = text.LENGTH
    return pipe, GUIDED | IMAGE | {"enable_prompt_rewrite": False}


@factory
def ovis_image() -> Built:
    transformer = diffusers.OvisImageTransformer2DModel(**PACKED, out_channels=16, joint_attention_dim=text.WIDTH)
    encoder = Qwen3Model(text.qwen3().config)
    pipe = diffusers.OvisImagePipeline(
        flow(use_dynamic_shifting=True), unshifted_vae(), encoder, text.tokenizer(), transformer
    )
    # the stock message is cut off after 28 tokens of its own tokenizer
    pipe.system_prompt, pipe.user_prompt_begin_id = "", 1
    return pipe, GUIDED | IMAGE | PADDED


@factory
def hidream_image() -> Built:
    """Tokens behind the image fill it up to the largest size."""
    transformer = diffusers.HiDreamImageTransformer2DModel(
        **HEADS, **LATENT, num_layers=2, num_single_layers=2, caption_channels=[text.WIDTH, text.WIDTH],
        text_emb_dim=2 * text.WIDTH, num_routed_experts=2, num_activated_experts=1, axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16), llama_layers=[0, 1, 2, 2],
    )  # fmt: skip
    encoder = LlamaForCausalLM(LlamaConfig(**text.DECODER, attn_implementation="eager"))
    words = text.tokenizer()
    pipe = diffusers.HiDreamImagePipeline(
        flow(shift=3.0), unshifted_vae(), text.clip_with_projection(), words, text.clip_with_projection(), words,
        text.t5(), words, encoder, text.tokenizer(), transformer,
    )  # fmt: skip
    pipe.default_sample_size = 8
    return pipe, GUIDED | IMAGE | PADDED


@factory
def prx() -> Built:
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=4, patch_size=2, context_in_dim=text.WIDTH, hidden_size=16, mlp_ratio=2.0, num_heads=2, depth=3,
        axes_dim=[4, 4],
    )  # fmt: skip
    pipe = diffusers.PRXPipeline(transformer, flow(shift=3.0), None, text.tokenizer(), unshifted_vae())
    # in place of prompts, which the pipeline cleans with a package that need not be there
    words = {"prompt_attention_mask": torch.ones(1, text.LENGTH).bool(), "prompt_embeds": text.embedded(0)}
    negative = {f"negative_{name}": value for name, value in (words | {"prompt_embeds": text.embedded(1)}).items()}
    return pipe, words | negative | IMAGE | {"use_resolution_binning": False}


@factory
def hunyuan_dit() -> Built:
    transformer = diffusers.HunyuanDiT2DModel(
        **HEADS, in_channels=4, patch_size=2, sample_size=8, hidden_size=16, num_layers=4, mlp_ratio=2.0,
        cross_attention_dim=text.WIDTH, cross_attention_dim_t5=text.WIDTH, pooled_projection_dim=6, text_len=77,
        text_len_t5=256,
    )  # fmt: skip
    sizes = {"hidden_size": text.WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    bert = BertModel(BertConfig(**sizes, **text.IDS))
    scheduler = diffusers.DDIMScheduler(**DIFFUSION, clip_sample=False)
    # the pipeline takes every autoencoder to divide height and width by 8
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = diffusers.AutoencoderKL(**tiny.EIGHTH, **levels)
    pipe = diffusers.HunyuanDiTPipeline(
        vae, bert, text.tokenizer(), transformer, scheduler, None, None, False, text.t5(), text.tokenizer()
    )
    return pipe, GUIDED | {"height": 64, "width": 96, "use_resolution_binning": False}


@factory
def lumina_next() -> Built:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8, patch_size=2, in_channels=4, hidden_size=16, num_layers=3, num_attention_heads=2,
        num_kv_heads=1, multiple_of=16, cross_attention_dim=text.WIDTH,
    )  # fmt: skip
    encoder = GemmaModel(GemmaConfig(**text.DECODER))
    pipe = diffusers.LuminaPipeline(transformer, flow(shift=3.0), image_vae(), encoder, text.tokenizer())
    # the pipeline takes every autoencoder to divide height and width by 8
    return pipe, GUIDED | PADDED | {"height": 64, "width": 96, "clean_caption": False}


@factory
def glm_image() -> Built:
    """The tokens of the prior come with the call, in place of those that a language model of vision would write."""
    transformer = diffusers.GlmImageTransformer2DModel(
        **HEADS, **LATENT, num_layers=3, text_embed_dim=text.WIDTH, time_embed_dim=8, condition_dim=4,
        prior_vq_quantizer_codebook_size=16,
    )  # fmt: skip
    vae = image_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    scheduler = flow(use_dynamic_shifting=True, base_shift=0.25, max_shift=0.75, time_shift_type="linear")
    pipe = diffusers.GlmImagePipeline(text.tokenizer(), None, text.t5(), None, vae, transformer, scheduler)
    prior: Any = torch.arange(32).view(1, 32) % 16
    return pipe, tiny.PROMPT | PADDED | WIDE | {"prior_token_ids": prior}


@factory
def krea2() -> Built:
    transformer = diffusers.Krea2Transformer2DModel(
        in_channels=16, num_layers=3, attention_head_dim=8, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, timestep_embed_dim=8, text_hidden_dim=16, num_text_layers=3, text_num_attention_heads=2,
        text_num_key_value_heads=1, text_intermediate_size=16, num_layerwise_text_blocks=1, num_refiner_text_blocks=1,
        axes_dims_rope=(4, 2, 2),
    )  # fmt: skip
    pipe = diffusers.Krea2Pipeline(
        flow(use_dynamic_shifting=True), qwen_vae(), None, text.tokenizer(), transformer, (1, 2, 3)
    )
    words = {"prompt_embeds": layers(0), "negative_prompt_embeds": layers(1)}
    return pipe, words | MASKED | IMAGE


@factory
def nucleus_image() -> Built:
    transformer = diffusers.NucleusMoEImageTransformer2DModel(
        **HEADS, patch_size=2, in_channels=16, out_channels=4, num_layers=3, joint_attention_dim=text.WIDTH,
        axes_dims_rope=(2, 2, 4), mlp_ratio=8.0, moe_enabled=True, dense_moe_strategy="all_moe", num_experts=4,
        moe_intermediate_dim=16, capacity_factors=2.0,
    )  # fmt: skip
    pipe = diffusers.NucleusMoEImagePipeline(transformer, flow(use_dynamic_shifting=True), qwen_vae(), None, None)
    words = {"prompt_embeds": text.embedded(0), "negative_prompt_embeds": text.embedded(1)}
    return pipe, words | MASKED | IMAGE


@factory
def joyimage_edit() -> Built:
    """An edit: the image given goes before the one being made. The stock sizes are around 1024 x 1024 alone."""
    from diffusers.pipelines.joyimage import image_processor as joyimage_sizes  # not in older releases

    transformer = diffusers.JoyImageEditTransformer3DModel(
        patch_size=[1, 2, 2], in_channels=4, hidden_size=16, num_attention_heads=2, text_dim=text.WIDTH,
        mlp_width_ratio=2.0, num_layers=3, rope_dim_list=[4, 2, 2],
    )  # fmt: skip
    vae = diffusers.AutoencoderKLWan(**CAUSAL, dim_mult=[1, 1, 1, 1])
    pipe = diffusers.JoyImageEditPipeline(flow(shift=4.0), vae, None, text.tokenizer(), transformer, None)
    joyimage_sizes.BUCKETS[64] = [(64, 96)]
    pipe.vae_image_processor = joyimage_sizes.JoyImageEditImageProcessor(basesize=64)
    words = {"prompt_embeds": text.embedded(0), "negative_prompt_embeds": text.embedded(1)}
    return pipe, words | MASKED | {"image": Image.linear_gradient("L").resize((96, 64)).convert("RGB")}


def layers(seed: int) -> torch.Tensor:
    """Three layers of an embedded prompt."""
    return torch.stack([text.embedded(seed + 2 * layer) for layer in range(3)], dim=2)


def qwen_vae() -> diffusers.AutoencoderKLQwenImage:
    return diffusers.AutoencoderKLQwenImage(**CAUSAL, dim_mult=[1, 1], temperal_downsample=[False])
