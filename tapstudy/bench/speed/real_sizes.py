"""What TAP costs on the released models: FLOPs of a step and memory of the history, without any weights.

Models and inputs live on torch's meta device, where operations know shapes but compute nothing; the counted steps are
nevertheless those of the real instrument and the real policy. Convention of the FLOPs: see `tapstudy.bench.flops`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import diffusers
import torch
from torch import Tensor, nn

from tapstudy.bench.speed.example_inputs import example_inputs
from tapstudy.bench.speed.without_values import spare_values
from tapstudy.instrument.adapters import ADAPTERS, Adapter
from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.flops import count_flops
from tapstudy.instrument.instrument import Instrument
from tapstudy.instrument.layouts import Grid
from tapstudy.instrument.trajectory import ContextRun
from tapstudy.policies.base import ResidualSite
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy


@dataclass(frozen=True)
class RealSize:
    """Hold a released model at its usual resolution.

    Attributes:
        label: its name and resolution.
        grid: frames, rows and columns of the image tokens.
        text: text tokens.
        config: arguments of the class that differ from its defaults (which are mostly those of a released model).
    """

    label: str
    grid: Grid
    text: int
    config: dict[str, Any] = field(default_factory=dict)


_IMAGE = (1, 64, 64)  # 1024 x 1024

REAL_SIZES: dict[str, RealSize] = {
    "AllegroTransformer3DModel": RealSize("Allegro, 88 x 720 x 1280", (22, 45, 80), 512),
    "AnyFlowTransformer3DModel": RealSize("AnyFlow-14B, 81 x 480 x 832", (21, 30, 52), 512),
    "AuraFlowTransformer2DModel": RealSize("AuraFlow, 1024 x 1024", _IMAGE, 256),
    "BriaFiboTransformer2DModel": RealSize("Bria FIBO, 1024 x 1024", _IMAGE, 512, {"num_layers": 8}),
    "BriaTransformer2DModel": RealSize("Bria (defaults of the class), 1024 x 1024", _IMAGE, 128),
    "ChromaTransformer2DModel": RealSize("Chroma, 1024 x 1024", _IMAGE, 512),
    "ChronoEditTransformer3DModel": RealSize("ChronoEdit-14B, 5 x 720 x 1280", (2, 45, 80), 512),
    "CogVideoXTransformer3DModel": RealSize(
        "CogVideoX-5B, 49 x 480 x 720", (13, 30, 45), 226,
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
    ),
    "CogView3PlusTransformer2DModel": RealSize("CogView3-Plus-3B, 1024 x 1024", _IMAGE, 224),
    "CogView4Transformer2DModel": RealSize(
        "CogView4-6B, 1024 x 1024", _IMAGE, 256,
        {"num_layers": 28, "attention_head_dim": 128, "num_attention_heads": 32},
    ),
    "ConsisIDTransformer3DModel": RealSize(
        "ConsisID, 49 x 480 x 720", (13, 30, 45), 226,
        {
            "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True, "in_channels": 32,
            "is_train_face": True,
        },
    ),
    "CosmosTransformer3DModel": RealSize(
        "Cosmos-1.0-7B, 121 x 704 x 1280", (16, 44, 80), 512, {"concat_padding_mask": False}
    ),
    "DiTTransformer2DModel": RealSize("DiT-XL/2, 256 x 256", (1, 16, 16), 0, {"out_channels": 8}),
    "EasyAnimateTransformer3DModel": RealSize(
        "EasyAnimate-V5.1-12B, 49 x 512 x 512", (13, 32, 32), 256,
        {"in_channels": 16, "out_channels": 16, "patch_size": 2},
    ),
    "Flux2Transformer2DModel": RealSize("FLUX.2-dev, 1024 x 1024", _IMAGE, 512),
    "FluxTransformer2DModel": RealSize("FLUX.1-dev, 1024 x 1024", _IMAGE, 512, {"guidance_embeds": True}),
    "GlmImageTransformer2DModel": RealSize(
        "GLM-Image, 1024 x 1024", _IMAGE, 64, {"attention_head_dim": 128, "num_attention_heads": 32}
    ),
    "HeliosTransformer3DModel": RealSize(
        "Helios-14B, 33 x 384 x 640", (9, 24, 40), 512, {"has_multi_term_memory_patch": True}
    ),
    "HiDreamImageTransformer2DModel": RealSize(
        "HiDream-I1, 1024 x 1024", _IMAGE, 128,
        {
            "patch_size": 2, "in_channels": 16, "caption_channels": [4096, 4096], "axes_dims_rope": (64, 32, 32),
            "llama_layers": [*range(32), *[31] * 16],
        },
    ),
    "HunyuanDiT2DModel": RealSize(
        "Hunyuan-DiT-v1.2, 1024 x 1024", _IMAGE, 333,
        {
            "in_channels": 4, "patch_size": 2, "hidden_size": 1408, "num_layers": 40, "mlp_ratio": 4.3637,
            "use_style_cond_and_image_meta_size": False, "sample_size": 128,
        },
    ),
    "HunyuanVideo15Transformer3DModel": RealSize("HunyuanVideo-1.5, 121 x 720 x 1280", (31, 45, 80), 256),
    "HunyuanVideoFramepackTransformer3DModel": RealSize(
        "FramePack, 33 x 640 x 640", (9, 40, 40), 256,
        {"has_image_proj": True, "image_proj_dim": 1152, "has_clean_x_embedder": True},
    ),
    "HunyuanVideoTransformer3DModel": RealSize("HunyuanVideo, 129 x 720 x 1280", (33, 45, 80), 256),
    "JoyImageEditTransformer3DModel": RealSize(
        "JoyImage, 1024 x 1024", _IMAGE, 128, {"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 40}
    ),
    "Kandinsky5Transformer3DModel": RealSize(
        "Kandinsky-5.0-Lite, 121 x 512 x 768", (31, 32, 48), 256,
        {"in_visual_dim": 16, "out_visual_dim": 16, "model_dim": 1792, "ff_dim": 7168},
    ),
    "Krea2Transformer2DModel": RealSize("Krea 2 (defaults of the class), 1024 x 1024", _IMAGE, 512),
    "LTXVideoTransformer3DModel": RealSize("LTX-Video 0.9, 161 x 512 x 704", (21, 16, 22), 128),
    "LongCatImageTransformer2DModel": RealSize(
        "LongCat-Image, 1024 x 1024", _IMAGE, 512, {"num_layers": 10, "num_single_layers": 20}
    ),
    "Lumina2Transformer2DModel": RealSize(
        # text features of Gemma-2-2B
        "Lumina-Image-2.0, 1024 x 1024", _IMAGE, 256, {"cap_feat_dim": 2304}
    ),
    "LuminaNextDiT2DModel": RealSize(
        "Lumina-Next, 1024 x 1024", _IMAGE, 128, {"num_layers": 24, "num_kv_heads": 8}
    ),
    "MochiTransformer3DModel": RealSize("Mochi-1, 163 x 480 x 848", (28, 30, 53), 256),
    "MotifVideoTransformer3DModel": RealSize(
        "Motif-Video-2B, 121 x 720 x 1280", (31, 45, 80), 256,
        {"num_attention_heads": 12, "num_layers": 12, "num_single_layers": 24, "num_decoder_layers": 8},
    ),
    "NucleusMoEImageTransformer2DModel": RealSize(
        "Nucleus-Image (defaults of the class), 1024 x 1024", _IMAGE, 128, {"out_channels": 16}
    ),
    "OvisImageTransformer2DModel": RealSize("Ovis-Image-7B, 1024 x 1024", _IMAGE, 256),
    "PRXTransformer2DModel": RealSize("PRX, 512 x 512", (1, 32, 32), 256),
    "PixArtTransformer2DModel": RealSize(
        "PixArt-Alpha-XL-2, 1024 x 1024", _IMAGE, 120, {"caption_channels": 4096, "interpolation_scale": 2}
    ),
    "QwenImageTransformer2DModel": RealSize("Qwen-Image, 1024 x 1024", _IMAGE, 128),
    "SD3Transformer2DModel": RealSize(
        "SD3-medium, 1024 x 1024", _IMAGE, 333,
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192},
    ),
    "SanaTransformer2DModel": RealSize("Sana-1.6B, 1024 x 1024", (1, 32, 32), 300),
    "SanaVideoTransformer3DModel": RealSize("Sana-Video-2B, 81 x 480 x 832", (21, 30, 52), 300),
    "SkyReelsV2Transformer3DModel": RealSize(
        "SkyReels-V2-14B, 97 x 544 x 960", (25, 34, 60), 512,
        {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824},
    ),
    "WanAnimateTransformer3DModel": RealSize("Wan2.2-Animate-14B, 77 x 720 x 1280", (21, 45, 80), 512),
    "WanTransformer3DModel": RealSize("Wan2.1-14B, 81 x 720 x 1280", (21, 45, 80), 512),
    "WanVACETransformer3DModel": RealSize("Wan2.1-VACE-14B, 81 x 720 x 1280", (21, 45, 80), 512),
    "ZImageTransformer2DModel": RealSize("Z-Image-Turbo, 1024 x 1024", _IMAGE, 128),
}  # fmt: skip


@dataclass(frozen=True)
class RealSizeCosts:
    """Hold costs of one sample. (Guidance in one batch has two samples in a context, in two calls one in each.)

    Attributes:
        parameters: of the transformer.
        full: FLOPs of a full pass.
        skip: FLOPs of a TAP skip step with the default 15 predictors on three anchors, residual in hidden space.
        skip_latent: the same in latent space; None where input and output of the model differ in shape.
        tokens: image tokens.
        width: channels of the hidden state.
        history: bytes of the history: three probes in bf16, three residuals in float32.
    """

    label: str
    parameters: int
    full: int
    skip: int
    skip_latent: int | None
    tokens: int
    width: int
    history: int

    @property
    def share(self) -> float:
        """Return a skip step's part of a full one."""
        return self.skip / self.full

    @property
    def share_latent(self) -> float | None:
        return None if self.skip_latent is None else self.skip_latent / self.full

    @property
    def history_bfloat16(self) -> int:
        """Return the bytes of the history with residuals in bf16 too."""
        return history_bytes(self.tokens, self.width, residual=torch.bfloat16)

    def __str__(self) -> str:
        latent = "" if self.share_latent is None else f" ({100 * self.share_latent:.3f} % with latent residuals)"
        return "\n".join([
            f"{self.label}: {self.parameters / 1e9:.2f} G parameters, {self.tokens} image tokens of width {self.width}",
            f"  full pass  {self.full / 1e12:.2f} TFLOP",
            f"  skip step  {self.skip / 1e9:.2f} GFLOP, {100 * self.share:.3f} % of a full pass{latent}",
            f"  history    {self.history / 1e9:.3f} GB per context and sample, "
            f"{self.history_bfloat16 / 1e9:.3f} GB with residuals in bf16",
        ])  # fmt: skip


def history_bytes(tokens: int, width: int, *, residual: torch.dtype = torch.float32) -> int:
    """Compute the bytes of one sample's history: three probes in bf16, three hidden residuals of dtype `residual`."""
    return 3 * tokens * width * (torch.bfloat16.itemsize + residual.itemsize)


def real_size_costs(name: str) -> RealSizeCosts:
    """Return costs of TAP on the released model of a transformer class, in bf16, batch 1.

    Args:
        name: class of the transformer, such as "FluxTransformer2DModel".

    Raises:
        ValueError: no real size is known for that class, or the installed diffusers lacks it.
    """
    if name not in REAL_SIZES:
        raise ValueError(f"no real size for {name!r}; known are {', '.join(sorted(REAL_SIZES))}")
    if not hasattr(diffusers, name):
        raise ValueError(f"diffusers {diffusers.__version__} has no {name} yet")
    size = REAL_SIZES[name]
    with torch.device("meta"):
        model: nn.Module = getattr(diffusers, name)(**size.config).eval()
    nn.Module.to(model, torch.bfloat16)  # the model's own `to` warns that parts of some classes stay in float32
    # some rows read these from values, which are not there
    adapter = replace(ADAPTERS[name], grid=lambda *_: size.grid, references=lambda *_: 0)
    if name == "Lumina2Transformer2DModel":  # so does this one with the lengths of the captions
        adapter = replace(adapter, image_start=(lambda _: size.text,))
    inputs = spare_values(model, example_inputs(model, size.grid, text=size.text, batch=1))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    with torch.no_grad():
        with warnings.catch_warnings():  # Kandinsky 5 normalises float32 with weights in half precision, as it is made
            warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight", category=UserWarning)
            full = count_flops(lambda: model(**inputs))
        skip, probe, run = _skip_step(model, adapter, inputs, "hidden")
        skip_latent, _, latent = _skip_step(model, adapter, inputs, "latent")
    assert latent.form is not None
    return RealSizeCosts(
        label=size.label,
        parameters=parameters,
        full=full,
        skip=skip,
        skip_latent=skip_latent if latent.form.shape == latent.shape else None,
        tokens=probe.shape[1],
        width=probe.shape[2],
        history=run.cache_bytes,
    )


def _skip_step(
    model: nn.Module, adapter: Adapter, inputs: Mapping[str, Any], residual: ResidualSite
) -> tuple[int, Tensor, ContextRun]:
    """Return the FLOPs of the skip step after three full ones; its probe; the context at its end.

    Leaves one block in every list: the others do not run at a skip step.
    """
    for name in adapter.blocks:
        del cast(nn.ModuleList, model.get_submodule(name))[1:]
    instrument = Instrument(model, adapter, TAPPolicy(TAPConfig(residual=residual)))
    events: list[StepEvent] = []
    instrument.listeners.append(events.append)
    instrument.attach()
    try:
        for _ in range(3):
            model(**inputs)
        flops = count_flops(lambda: model(**inputs))
        (run,) = instrument.runs.values()
    finally:
        instrument.detach()
    if run.kinds != ["full", "full", "full", "skip"]:
        raise RuntimeError(f"{type(model).__name__} should have skipped its fourth step only, got {run.kinds}")
    assert events[-1].probe is not None
    return flops, events[-1].probe, run
