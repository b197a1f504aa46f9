"""What the trainer is told about a kind of model: which modules learn, from which batches, and how they sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from diffusers import DiffusionPipeline, DiTTransformer2DModel, FluxTransformer2DModel
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from tapstudy.models.data import LabelledImages
from tapstudy.models.pipeline import LabelPipeline, flow_matching_scheduler
from tapstudy.models.text_pipeline import TextPipeline, encode_tokens, predict_velocity
from tapstudy_training.batches import Batch, label_batch
from tapstudy_training.captioned import CaptionedImages, caption, words_of
from tapstudy_training.recipes import EmbeddedModel, Recipe


class Task(Protocol):
    """A kind of model, as the trainer sees it."""

    @property
    def columns(self) -> int:
        """Images a row of a sample grid."""
        ...

    def build(self, initial: Path | None = None) -> nn.ModuleDict:
        """The modules that learn, with random weights or those in a pipeline's (or a transformer's) folder."""
        ...

    def batch(self, recipe: Recipe, step: int) -> Batch:
        """The batch of a step, drawn from its own seed, so that a resumed run sees what it would have seen."""
        ...

    def velocity(self, modules: nn.ModuleDict, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """The predicted velocity, of the shape of `x_t`, at times `t` (B,) in (0, 1)."""
        ...

    def pipeline(self, modules: nn.ModuleDict) -> DiffusionPipeline:
        """The pipeline that samples with these modules."""
        ...

    def sample_grid(self, pipe: Any) -> list[Image.Image]:
        """Samples that show how far the training is."""
        ...

    def matrices(self, modules: nn.ModuleDict) -> list[nn.Parameter]:
        """The weights of attention and feed-forward layers, which Muon learns."""
        ...


@dataclass(frozen=True)
class LabelTask:
    """Class labels in, images out.

    Args:
        config: of the `DiTTransformer2DModel`.
        images: what is learned.
        guidance_stop: of the pipeline that samples.
        smooth_sigma: what the low-pass of the clock will be when the model is stored.
        kept_blocks: those that it keeps of a deeper model that it starts from.
    """

    config: Mapping[str, Any]
    images: LabelledImages
    guidance_stop: float = 0.0
    smooth_sigma: float = 0.0
    kept_blocks: Sequence[int] = ()
    columns: int = 4

    def build(self, initial: Path | None = None) -> nn.ModuleDict:
        """A `DiTTransformer2DModel`."""
        if initial is None:
            return nn.ModuleDict({"transformer": DiTTransformer2DModel.from_config(dict(self.config))})
        model: Any = loaded_part(DiTTransformer2DModel, initial, "transformer")
        if len(model.transformer_blocks) > len(self.kept_blocks) > 0:
            model.transformer_blocks = nn.ModuleList(model.transformer_blocks[i] for i in self.kept_blocks)
            model.register_to_config(num_layers=len(self.kept_blocks))
        return nn.ModuleDict({"transformer": model})

    def batch(self, recipe: Recipe, step: int) -> Batch:
        """Images with labels."""
        return label_batch(self.images, recipe, step=step, null_label=self.config["num_embeds_ada_norm"])

    def velocity(self, modules: nn.ModuleDict, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Of noisy images (B, bands, H, W) with labels (B,)."""
        return modules["transformer"](x_t, timestep=1000 * t, class_labels=condition).sample

    def pipeline(self, modules: nn.ModuleDict) -> LabelPipeline:
        """A `LabelPipeline`."""
        return LabelPipeline(
            modules["transformer"],
            flow_matching_scheduler(),
            guidance_stop=self.guidance_stop,
            smooth_sigma=self.smooth_sigma,
        )

    def sample_grid(self, pipe: Any) -> list[Image.Image]:
        """Four of every label."""
        labels = [label for label in range(self.config["num_embeds_ada_norm"]) for _ in range(4)]
        (images,) = pipe(labels, guidance_scale=2.0, generator=torch.Generator().manual_seed(0), return_dict=False)
        return images

    def matrices(self, modules: nn.ModuleDict) -> list[nn.Parameter]:
        """Of all blocks, without their modulation."""
        return _block_matrices(modules["transformer"])


@dataclass(frozen=True)
class TextTask:
    """Captions in, images out.

    Args:
        config: of the `FluxTransformer2DModel`.
        text_encoder: arguments of its `T5Config`, without the size of the vocabulary.
        length: tokens of a caption, the end included.
        images: what is learned; the held-out ones are only asked for in the sample grid.
        size: pixels along a side.
        shift: of the scheduler that the model samples with.
        smooth_sigma: what the low-pass of the clock will be when the model is stored.
    """

    config: Mapping[str, Any]
    text_encoder: Mapping[str, Any]
    length: int
    images: CaptionedImages
    size: int
    shift: float = 1.0
    smooth_sigma: float = 0.0
    columns: int = 8

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Of all words that captions of these images can have."""
        return word_tokenizer(words_of(self.images.emoji), self.length)

    @cached_property
    def seen(self) -> CaptionedImages:
        """The images that are trained on."""
        return self.images.part(held_out=False)

    def build(self, initial: Path | None = None) -> nn.ModuleDict:
        """A `FluxTransformer2DModel` and a `T5EncoderModel`."""
        if initial is None:
            config = T5Config(vocab_size=len(self.tokenizer), **self.text_encoder)
            return nn.ModuleDict(
                {
                    "transformer": FluxTransformer2DModel.from_config(dict(self.config)),
                    "text_encoder": T5EncoderModel(config),
                }
            )
        known = PreTrainedTokenizerFast.from_pretrained(initial / "tokenizer").get_vocab()
        if known != self.tokenizer.get_vocab():
            raise ValueError(f"the model in {initial} knows other words than these captions have; start anew")
        return nn.ModuleDict(
            {
                "transformer": loaded_part(FluxTransformer2DModel, initial, "transformer"),
                "text_encoder": loaded_part(T5EncoderModel, initial, "text_encoder"),
            }
        )

    def batch(self, recipe: Recipe, step: int) -> Batch:
        """Pictures with the ids of their captions' words; at half the size in the first part of the run."""
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + step)
        x, captions = self.seen.draw(recipe.batch_size, generator)
        dropped = torch.rand(len(captions), generator=generator) < recipe.label_dropout
        captions = ["" if drop else text for text, drop in zip(captions, dropped.tolist(), strict=True)]
        half = step < recipe.half_size_steps
        x = F.avg_pool2d(x, 2) if half else x
        noise = torch.randn(x.shape, generator=generator)
        times = (torch.arange(len(x)) + torch.rand(len(x), generator=generator)) / len(x)  # one in each part of (0, 1)
        normal = torch.special.ndtri(times.clamp(1e-6, 1 - 1e-6)) + (0.0 if half else recipe.time_mean)
        return Batch(x, self._ids(captions), noise, torch.sigmoid(normal))

    def velocity(self, modules: nn.ModuleDict, x_t: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Of noisy images (B, 3, H, W) with ids of words (B, length)."""
        mask = (condition != self.tokenizer.pad_token_id).long()
        words, pooled = encode_tokens(modules["text_encoder"], condition, mask)
        frame = self.size // int((self.config["in_channels"] / x_t.shape[1]) ** 0.5)
        return predict_velocity(modules["transformer"], x_t, t, words, pooled, frame=frame)

    def pipeline(self, modules: nn.ModuleDict) -> TextPipeline:
        """A `TextPipeline`."""
        return TextPipeline(
            modules["transformer"],
            modules["text_encoder"],
            self.tokenizer,
            flow_matching_scheduler(self.shift),
            image_size=self.size,
            smooth_sigma=self.smooth_sigma,
        )

    def sample_grid(self, pipe: Any) -> list[Image.Image]:
        """Two rows of captions that are trained on, then two of held-out ones."""
        (images,) = pipe(
            self.grid_captions(), guidance_scale=3.0, generator=torch.Generator().manual_seed(0), return_dict=False
        )
        return images

    def grid_captions(self) -> list[str]:
        """Sixteen captions that are trained on and, if there are any, sixteen that are not."""
        seen = _spread(self.seen, 16)
        held_out = _spread(self.images.part(held_out=True), 16)
        names = ("teal", "white", "purple", "yellow", "black", "green", "grey", "orange")
        return [caption(one, background=names[i % len(names)]) for i, one in enumerate([*seen, *held_out])]

    def matrices(self, modules: nn.ModuleDict) -> list[nn.Parameter]:
        """Of all blocks of the transformer, without their modulation."""
        return _block_matrices(modules["transformer"])

    def _ids(self, captions: Sequence[str]) -> Tensor:
        return self.tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt").input_ids


def task_of(spec: EmbeddedModel, images: Any) -> LabelTask | TextTask:
    """The task of an embedded model with its training images."""
    if spec.text_encoder is None:
        return LabelTask(
            spec.transformer,
            images,
            guidance_stop=spec.guidance_stop,
            smooth_sigma=spec.recipe.smooth_sigma,
            kept_blocks=spec.kept_blocks,
        )
    return TextTask(
        spec.transformer,
        spec.text_encoder,
        spec.caption_length,
        images,
        size=spec.size,
        shift=spec.shift,
        smooth_sigma=spec.recipe.smooth_sigma,
    )


def word_tokenizer(words: Sequence[str], length: int) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words, with an end token, padding and cutting to `length` tokens."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=length
    )


def loaded_part(kind: Any, folder: Path, part: str) -> nn.Module:
    """A module in float32 from a pipeline's folder or its own."""
    inside = folder / part
    return kind.from_pretrained(inside if inside.is_dir() else folder, use_safetensors=True).float()


def _block_matrices(transformer: nn.Module) -> list[nn.Parameter]:
    return [
        parameter
        for name, parameter in transformer.named_parameters()
        if parameter.ndim == 2 and "transformer_blocks." in name and ".norm" not in name
    ]


def _spread(images: CaptionedImages, count: int) -> list[Any]:
    """`count` of them, evenly through the set."""
    return [images.emoji[int((i + 0.5) * len(images) / count)] for i in range(count)] if len(images) else []
