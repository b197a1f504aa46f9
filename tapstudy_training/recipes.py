"""The embedded models: what each one is, which data it learns and how it is trained. One entry per model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Recipe:
    """How to train a diffusion transformer. `total_steps` may change on resuming: the rate is constant, then falls
    linearly to 0 over the last `decay_share` of the run.

    Args:
        flip: mirror every image with probability 1/2.
        zero_gates: start with closed gates and a zero output, so that every block is the identity (adaLN-Zero of
            Peebles and Xie, arXiv 2212.09748).
        on_device: hold the images on the training device and draw every random number there. Without it they are
            drawn on the CPU and are the same on every machine.
        precision: of the forward pass.
        log_every: steps between waits for the device; the losses in between are written together.
        matrix_rate: peak rate of Muon (K. Jordan et al., 2024), which learns the matrices of attention and
            feed-forward layers; 0 leaves all to AdamW.
        beta2: of AdamW.
        half_size_steps: first steps at half the image size, which may change on resuming, too.
        time_mean: of the logit of the times, at full size.
        smooth_sigma: width, in units of the 1000 training times, that the timestep features are averaged over while
            the model learns; folded into the weights when it is stored.
    """

    total_steps: int
    batch_size: int = 64
    learning_rate: float = 6e-4
    rate_warmup_steps: int = 100
    decay_share: float = 0.5
    weight_decay: float = 0.01
    label_dropout: float = 0.1
    ema_decay: float = 0.999
    gradient_clip: float = 1.0
    checkpoint_every: int = 200
    sample_every: int = 400
    seed: int = 0
    flip: bool = False
    zero_gates: bool = False
    on_device: bool = False
    precision: Literal["bf16", "float32"] = "bf16"
    log_every: int = 1
    matrix_rate: float = 0.0
    beta2: float = 0.99
    half_size_steps: int = 0
    time_mean: float = 0.0
    smooth_sigma: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate at `step` (0-based)."""
        return self.learning_rate * self.rate_share(step)

    def rate_share(self, step: int) -> float:
        """Share of the peak rate at `step`."""
        warm = min(1.0, (step + 1) / self.rate_warmup_steps)
        fall = min(1.0, (self.total_steps - step) / max(1.0, self.decay_share * self.total_steps))
        return warm * fall


@dataclass(frozen=True)
class ClassifierRecipe:
    """How to train a judge.

    Args:
        architecture: "plain", six convolutions, or "residual", eight of them, four in residual pairs.
        width: channels of the first layer; the features are 4 * width.
        optimizer: "adamw", or "sgd" with Nesterov momentum 0.9; both with a one-cycle rate.
        augment: "shift" moves a batch by up to 2 pixels; "crop" moves every image by up to 4 pixels; "crop-flip" also
            mirrors it with probability 1/2.
    """

    epochs: int = 5
    architecture: Literal["plain", "residual"] = "plain"
    width: int = 32
    batch_size: int = 128
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    label_smoothing: float = 0.0
    augment: Literal["shift", "crop", "crop-flip"] = "shift"


def _transformer(*, heads: int, layers: int, bands: int, size: int) -> dict[str, Any]:
    """Arguments of diffusers' `DiTTransformer2DModel`: heads of 64 channels, patches of 2 x 2, ten labels."""
    return {
        "num_attention_heads": heads,
        "attention_head_dim": 64,
        "num_layers": layers,
        "in_channels": bands,
        "out_channels": bands,
        "sample_size": size,
        "patch_size": 2,
        "num_embeds_ada_norm": 10,
        "activation_fn": "gelu-approximate",
        "attention_bias": True,
        "norm_type": "ada_norm_zero",
        "norm_elementwise_affine": False,
    }


@dataclass(frozen=True)
class EmbeddedModel:
    """An embedded model.

    Args:
        data_set: name in `tapstudy.models.data.DATA_SETS`, or "emoji"; its judge is `{data_set}-classifier`.
        transformer: arguments of `DiTTransformer2DModel`, or of `FluxTransformer2DModel` where there is text.
        text_encoder: arguments of `T5Config` without the vocabulary; None: a model of class labels.
        caption_length: tokens of a caption, the end included.
        size: pixels along a side, of models of text.
        shift: of the noise schedule that a model of text samples with.
        stored: the weights' type on disk.
        count: samples of the quality measures.
        guidance_stop: noise level that guidance ends at when the model samples, kept with it.
        initial: the embedded model whose weights it goes on from while its clock is smoothed; none: random weights.
        kept_blocks: those of that model that it keeps; none: all.
        limits: the card's last word.
    """

    name: str
    data_set: str
    transformer: Mapping[str, Any]
    recipe: Recipe
    stored: Literal["float16", "bfloat16"] = "float16"
    compile: bool = True
    count: int = 1000
    guidance_stop: float = 0.0
    initial: str = ""
    kept_blocks: tuple[int, ...] = ()
    limits: str = field(default="", repr=False)
    text_encoder: Mapping[str, Any] | None = None
    caption_length: int = 16
    size: int = 64
    shift: float = 1.0

    @property
    def judge(self) -> str:
        """Name of the classifier of the same data."""
        return f"{self.data_set}-classifier"


MODELS: dict[str, EmbeddedModel] = {
    model.name: model
    for model in (
        EmbeddedModel(
            name="mnist-dit",
            data_set="mnist",
            transformer=_transformer(heads=3, layers=10, bands=1, size=28),
            recipe=Recipe(total_steps=1000, learning_rate=4e-4, smooth_sigma=30.0),
            guidance_stop=0.75,
            initial="mnist-dit-rough",
            limits="Digits only. Made to study acceleration methods on, not to make good digits.",
        ),
        # The small model of that family: two of its blocks, trained on.
        EmbeddedModel(
            name="mnist-dit-small",
            data_set="mnist",
            transformer=_transformer(heads=3, layers=2, bands=1, size=28),
            recipe=Recipe(total_steps=1000, batch_size=32, learning_rate=1e-3, checkpoint_every=100, smooth_sigma=30.0),
            compile=False,
            count=200,
            guidance_stop=0.75,
            initial="mnist-dit",
            kept_blocks=(0, 6),
            limits="Digits, and worse ones than `mnist-dit` draws, which it stands beside as the cheap model that some "
            "steps may be left to (docs/methods.md). Not made to draw with alone.",
        ),
        # 29.4 M parameters, 58.8 MB in bf16; 10.1 GFLOPs an image forward, 30.3 with the backward pass.
        EmbeddedModel(
            name="cifar10-dit",
            data_set="cifar10",
            transformer=_transformer(heads=6, layers=10, bands=3, size=32),
            recipe=Recipe(
                total_steps=20_000,
                batch_size=512,
                learning_rate=6e-4,
                rate_warmup_steps=500,
                ema_decay=0.9995,
                checkpoint_every=1000,
                sample_every=4000,
                flip=True,
                zero_gates=True,
                on_device=True,
                log_every=20,
            ),
            stored="bfloat16",
            count=5000,
            limits="Ten classes of small pictures. Made to study acceleration methods on, not to make good pictures.",
        ),
        # 11.1 M parameters and 0.8 M of text encoder, 23.7 MB in bf16.
        EmbeddedModel(
            name="emoji-flux",
            data_set="emoji",
            transformer={
                "in_channels": 48,  # 4 x 4 pixels of 3 colours
                "num_layers": 2,
                "num_single_layers": 6,
                "attention_head_dim": 64,
                "num_attention_heads": 4,
                "joint_attention_dim": 128,
                "pooled_projection_dim": 128,
                "axes_dims_rope": (16, 24, 24),
            },
            text_encoder={
                "d_model": 128,
                "d_kv": 32,
                "d_ff": 512,
                "num_layers": 2,
                "num_heads": 4,
                "dropout_rate": 0.0,
                "feed_forward_proj": "gated-gelu",
                "pad_token_id": 0,
                "eos_token_id": 1,
            },
            recipe=Recipe(
                total_steps=15_000,
                half_size_steps=10_000,
                learning_rate=1e-3,
                matrix_rate=2e-3,
                beta2=0.98,
                decay_share=0.3,
                checkpoint_every=250,
                sample_every=1000,
                zero_gates=True,
                time_mean=0.3,
                smooth_sigma=30.0,
            ),
            stored="bfloat16",
            count=500,
            limits="Emoji on plain backgrounds. Made to study acceleration methods on, not to make good pictures.",
        ),
    )
}

CLASSIFIERS: dict[str, ClassifierRecipe] = {
    "mnist": ClassifierRecipe(),
    "cifar10": ClassifierRecipe(
        epochs=40,
        architecture="residual",
        width=64,
        batch_size=512,
        optimizer="sgd",
        learning_rate=0.2,
        weight_decay=5e-4,
        label_smoothing=0.1,
        augment="crop-flip",
    ),
    "emoji": ClassifierRecipe(epochs=8, architecture="residual", batch_size=256, augment="crop"),
}
