"""Every supported pipeline of diffusers with tiny random parts.

Nothing is downloaded, and a factory builds the same weights every time. Images are higher than wide or wider than high,
never square, so that a transposed token grid cannot pass unseen.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import nn

from tests.pipelines import text

Call = dict[str, Any]
Built = tuple[diffusers.DiffusionPipeline, Call]

STEPS = 12
FACTORIES: dict[str, Callable[[], Built]] = {}

HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
PROMPT = {"prompt": text.PROMPTS[:1]}
GUIDED = PROMPT | {"negative_prompt": text.NEGATIVES[:1]}
IMAGE = {"height": 16, "width": 24}
VIDEO = {"height": 32, "width": 64, "num_frames": 5}
PADDED = {"max_sequence_length": text.LENGTH}


def factory(build: Callable[[], Built], table: dict[str, Callable[[], Built]] = FACTORIES) -> Callable[[], Built]:
    """Enter a function in the table and make what it builds reproducible, quiet, and ready to call."""

    @functools.wraps(build)
    def ready() -> Built:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            pipe, call = build()
            for part in pipe.components.values():
                if isinstance(part, nn.Module):
                    settle(part)
        pipe.set_progress_bar_config(disable=True)
        return pipe, {"num_inference_steps": STEPS, "output_type": "latent"} | call

    table[build.__name__] = ready
    return ready


def sample(pipe: diffusers.DiffusionPipeline, call: Call, **changes: Any) -> torch.Tensor:
    """Run the pipeline from a fixed seed."""
    arguments = copy.deepcopy(call) | changes  # some pipelines write into the list of prompts
    output = pipe(**arguments, generator=torch.Generator().manual_seed(0), return_dict=False)[0]
    return torch.as_tensor(output)


def settle(model: nn.Module) -> None:
    """Ready for inference, with all matrices drawn: some classes leave the tokens for padding uninitialised."""
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=(len(parameter) / parameter.numel()) ** 0.5)


def image_vae(**settings: Any) -> diffusers.AutoencoderKL:
    """Latents of 4 channels and half the height and width."""
    return diffusers.AutoencoderKL(**TWO_LEVELS, norm_num_groups=2, latent_channels=4, **settings)


# of autoencoders
TWO_LEVELS = {
    "block_out_channels": (4, 4),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
CAUSAL = {"z_dim": 4, "latents_mean": [0.0] * 4, "latents_std": [1.0] * 4, "base_dim": 4, "num_res_blocks": 1}
EIGHTH = {"latent_channels": 4, "block_out_channels": (4, 4, 4, 4), "layers_per_block": 1, "norm_num_groups": 2}


def flow(**settings: Any) -> diffusers.FlowMatchEulerDiscreteScheduler:
    return diffusers.FlowMatchEulerDiscreteScheduler(**settings)


@factory
def dit() -> Built:
    """Always square, and the pipeline always decodes."""
    transformer = diffusers.DiTTransformer2DModel(**HEADS, num_layers=3, sample_size=8, out_channels=8)
    # a random network's noise prediction would be divided by next to nothing at the first steps; its velocity is tame
    scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False)
    pipe = diffusers.DiTPipeline(transformer, image_vae(), scheduler)
    return pipe, {"class_labels": [3], "output_type": "np"}


@factory
def pixart_alpha() -> Built:
    transformer = diffusers.PixArtTransformer2DModel(
        **HEADS, num_layers=3, sample_size=8, cross_attention_dim=16, caption_channels=text.WIDTH
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(prediction_type="v_prediction")
    pipe = diffusers.PixArtAlphaPipeline(text.tokenizer(), text.t5(), image_vae(), transformer, scheduler)
    return pipe, GUIDED | IMAGE | PADDED | {"use_resolution_binning": False, "clean_caption": False}


@factory
def stable_diffusion_3() -> Built:
    transformer = diffusers.SD3Transformer2DModel(
        **HEADS,
        num_layers=3,
        sample_size=8,
        pos_embed_max_size=12,
        in_channels=4,
        out_channels=4,
        caption_projection_dim=16,
        joint_attention_dim=2 * text.WIDTH,
        pooled_projection_dim=2 * text.WIDTH,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipe = diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow(shift=3.0),
        vae=image_vae(shift_factor=0.0),
        text_encoder=text.clip_with_projection(),
        tokenizer=text.tokenizer(),
        text_encoder_2=text.clip_with_projection(),
        tokenizer_2=text.tokenizer(),
        text_encoder_3=text.t5(2 * text.WIDTH),
        tokenizer_3=text.tokenizer(),
    )
    return pipe, GUIDED | IMAGE | PADDED


@factory
def stable_diffusion_3_skip_layer_guidance() -> Built:
    """A third call per step, from the second step to the fifth, with a layer left out."""
    pipe, call = stable_diffusion_3()
    return pipe, call | {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 0.5}


@factory
def stable_diffusion_3_heun() -> Built:
    """A scheduler of second order: two calls per step but the last, 13 in all."""
    pipe, call = stable_diffusion_3()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    return pipe, call | {"num_inference_steps": 7}


@factory
def flux() -> Built:
    transformer = diffusers.FluxTransformer2DModel(
        **HEADS,
        num_layers=2,
        num_single_layers=2,
        in_channels=16,
        joint_attention_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    pipe = diffusers.FluxPipeline(
        transformer=transformer,
        scheduler=flow(use_dynamic_shifting=True),
        vae=image_vae(shift_factor=0.0),
        text_encoder=text.clip(),
        tokenizer=text.tokenizer(),
        text_encoder_2=text.t5(),
        tokenizer_2=text.tokenizer(),
    )
    return pipe, PROMPT | IMAGE | PADDED


@factory
def flux_true_cfg() -> Built:
    pipe, call = flux()
    return pipe, call | GUIDED | {"true_cfg_scale": 2.0}


@factory
def flux_img2img() -> Built:
    """Names no contexts and starts midway: 9 of 12 steps."""
    pipe, call = flux()
    pipe = diffusers.FluxImg2ImgPipeline.from_pipe(pipe)
    return pipe, call | {"image": picture(), "strength": 0.75}


@factory
def flux_kontext() -> Built:
    """Appends the tokens of the picture to those of the image."""
    pipe, call = flux()
    pipe = diffusers.FluxKontextPipeline.from_pipe(pipe)
    return pipe, call | {"image": picture(), "max_area": 16 * 24, "_auto_resize": False}


def picture() -> torch.Tensor:
    """(1, 3, 16, 24), between 0 and 1."""
    return torch.linspace(0, 1, 3 * 16 * 24).view(1, 3, 16, 24)


def flux2_parts(**settings: Any) -> dict[str, Any]:
    """What both pipelines of Flux 2 share; three layers of the text encoder make up the text."""
    transformer = diffusers.Flux2Transformer2DModel(
        **HEADS,
        num_layers=2,
        num_single_layers=2,
        in_channels=16,
        joint_attention_dim=3 * text.WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(2, 2, 2, 2),
        **settings,
    )
    vae = diffusers.AutoencoderKLFlux2(**TWO_LEVELS, layers_per_block=1, norm_num_groups=2, latent_channels=4)
    return {"transformer": transformer, "vae": vae, "scheduler": flow(use_dynamic_shifting=True)}


FLUX2 = PROMPT | IMAGE | PADDED | {"text_encoder_out_layers": (1, 2, 3)}


@factory
def flux2() -> Built:
    tokenizer = text.tokenizer()
    # only the user's words: the stock system message would fill the few tokens there are
    tokenizer.chat_template = "{{ messages[-1]['content'][0]['text'] }}"
    parts = flux2_parts(guidance_embeds=True)
    return diffusers.Flux2Pipeline(text_encoder=text.mistral3(), tokenizer=tokenizer, **parts), FLUX2


@factory
def flux2_klein() -> Built:
    parts = flux2_parts(guidance_embeds=False)
    return diffusers.Flux2KleinPipeline(text_encoder=text.qwen3(), tokenizer=text.tokenizer(), **parts), FLUX2


@factory
def qwen_image() -> Built:
    transformer = diffusers.QwenImageTransformer2DModel(
        **HEADS,
        num_layers=3,
        in_channels=16,
        out_channels=4,
        joint_attention_dim=text.WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    vae = diffusers.AutoencoderKLQwenImage(**CAUSAL, dim_mult=[1, 1], temperal_downsample=[False])
    pipe = diffusers.QwenImagePipeline(
        flow(use_dynamic_shifting=True), vae, text.qwen2_5_vl(), text.tokenizer(), transformer
    )
    # the stock template is cut off after 34 tokens of its own tokenizer
    pipe.prompt_template_encode, pipe.prompt_template_encode_start_idx = "{}", 1
    return pipe, GUIDED | IMAGE | {"true_cfg_scale": 4.0}


@factory
def hunyuan_video() -> Built:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        **HEADS,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=1,
        in_channels=4,
        out_channels=4,
        text_embed_dim=text.WIDTH,
        pooled_projection_dim=text.WIDTH,
        rope_axes_dim=(2, 2, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(**EIGHTH)
    pipe = diffusers.HunyuanVideoPipeline(
        text.llama(), text.tokenizer(), transformer, vae, flow(shift=7.0), text.clip(), text.tokenizer()
    )
    # the stock template is cropped in tokens of its own tokenizer
    return pipe, PROMPT | PADDED | VIDEO | {"prompt_template": {"template": "{}", "crop_start": 1}}


def wan_transformer(in_channels: int = 4) -> diffusers.WanTransformer3DModel:
    return diffusers.WanTransformer3DModel(
        **HEADS, num_layers=3, in_channels=in_channels, out_channels=4, text_dim=text.WIDTH, freq_dim=16, ffn_dim=32
    )


def wan_pipeline(**parts: Any) -> diffusers.WanPipeline:
    vae = diffusers.AutoencoderKLWan(**CAUSAL, dim_mult=[1, 1, 1, 1])
    scheduler = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.WanPipeline(text.tokenizer(), text.umt5(), vae, scheduler, **parts)


@factory
def wan() -> Built:
    return wan_pipeline(transformer=wan_transformer()), GUIDED | VIDEO | PADDED


@factory
def wan22() -> Built:
    """One transformer for the noisy steps, another for the rest."""
    pipe = wan_pipeline(transformer=wan_transformer(), transformer_2=wan_transformer(), boundary_ratio=0.8)
    return pipe, GUIDED | VIDEO | PADDED


@factory
def cogvideox() -> Built:
    transformer = diffusers.CogVideoXTransformer3DModel(
        **HEADS,
        num_layers=3,
        in_channels=4,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=text.WIDTH,
        sample_height=4,
        sample_width=8,
        sample_frames=5,
        max_text_seq_length=text.LENGTH,
    )
    vae = diffusers.AutoencoderKLCogVideoX(**EIGHTH)
    scheduler = diffusers.CogVideoXDDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    pipe = diffusers.CogVideoXPipeline(text.tokenizer(), text.t5(), vae, transformer, scheduler)
    return pipe, GUIDED | PADDED | VIDEO


@factory
def ltx() -> Built:
    transformer = diffusers.LTXVideoTransformer3DModel(
        **HEADS, num_layers=3, in_channels=4, out_channels=4, cross_attention_dim=16, caption_channels=text.WIDTH
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
    )
    pipe = diffusers.LTXPipeline(flow(use_dynamic_shifting=True), vae, text.t5(), text.tokenizer(), transformer)
    return pipe, GUIDED | PADDED | VIDEO


@factory
def sana() -> Built:
    transformer = diffusers.SanaTransformer2DModel(
        **HEADS,
        num_layers=3,
        in_channels=4,
        out_channels=4,
        sample_size=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=text.WIDTH,
    )
    levels = {
        f"{side}_{name}": value
        for side in ("encoder", "decoder")
        for name, value in {
            "block_types": ("ResBlock", "ResBlock", "ResBlock", "EfficientViTBlock"),
            "block_out_channels": (8, 8, 8, 8),
            "layers_per_block": (1, 1, 1, 1),
            "qkv_multiscales": ((), (), (), (5,)),
        }.items()
    }
    vae = diffusers.AutoencoderDC(latent_channels=4, attention_head_dim=4, **levels)
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = diffusers.SanaPipeline(text.tokenizer(), text.gemma2(), vae, transformer, scheduler)
    bare = {"use_resolution_binning": False, "complex_human_instruction": None}
    return pipe, GUIDED | PADDED | {"height": 32, "width": 64} | bare


@factory
def lumina2() -> Built:
    """Guidance in a second call that names no context and ends after 9 of 12 steps."""
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=3,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 2, 2),
        cap_feat_dim=text.WIDTH,
    )
    pipe = diffusers.Lumina2Pipeline(
        transformer, flow(shift=6.0), image_vae(shift_factor=0.0), text.gemma2(), text.tokenizer()
    )
    # the pipeline takes every autoencoder to divide height and width by 8
    return pipe, GUIDED | PADDED | {"height": 64, "width": 96, "system_prompt": "", "cfg_trunc_ratio": 0.75}


@factory
def z_image() -> Built:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=16,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=text.WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[128, 32, 32],
    )
    pipe = diffusers.ZImagePipeline(
        flow(shift=3.0), image_vae(shift_factor=0.0), text.qwen3(), text.tokenizer(), transformer
    )
    return pipe, GUIDED | IMAGE | PADDED


@factory
def z_image_truncated() -> Built:
    """Guidance by a batch of two that shrinks to one after 8 of 12 steps."""
    pipe, call = z_image()
    return pipe, call | {"cfg_truncation": 0.35}
