"""The sampling pipeline of the embedded text-to-image models: prompts in, images out, no autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from torch import Tensor, nn

from tapstudy.models.pixel_pipeline import Generators, PixelPipeline, StepCallback


def pack(images: Tensor, patch: int) -> Tensor:
    """Images (B, C, H, W) as tokens (B, H W / patch^2, patch^2 C), row by row, and pixel by pixel in each.

    The order of recorded latents, so that whoever reads them finds the pixels.
    """
    batch, channels, height, width = images.shape
    tokens = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return tokens.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpack(tokens: Tensor, patch: int, height: int, width: int) -> Tensor:
    """Undo `pack` for images of `height` x `width` pixels."""
    parts = tokens.reshape(len(tokens), height // patch, width // patch, patch, patch, -1)
    return parts.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, height, width)


def position_ids(rows: int, columns: int, *, frame: int, device: torch.device | str | None = None) -> Tensor:
    """Positions (rows x columns, 3) of tokens as FLUX takes them, (0, row, column).

    A grid coarser than `frame` tokens a side spans the same frame, each token in the middle of those it stands for.
    """
    row, column = ((torch.arange(count, device=device) + 0.5) * (frame / count) - 0.5 for count in (rows, columns))
    grid = torch.stack(torch.meshgrid(row, column, indexing="ij"), dim=-1).reshape(-1, 2)
    return torch.nn.functional.pad(grid, (1, 0))


def encode_tokens(text_encoder: nn.Module, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings of words (B, length, width), zero at padding, and their mean over the words (B, width).

    Args:
        ids, mask: (B, length), as the tokenizer gives them.
    """
    words = text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    return words, words.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def predict_velocity(
    transformer: FluxTransformer2DModel,
    images: Tensor,
    timestep: Tensor,
    words: Tensor,
    pooled: Tensor,
    *,
    frame: int,
) -> Tensor:
    """Return the flow velocity of the shape of `images`.

    Args:
        images: states (B, C, H, W).
        timestep: (B,), in [0, 1], as FLUX takes it.
        words, pooled: as `encode_tokens` gives them.
        frame: tokens along a side of a full-size image.
    """
    height, width = images.shape[-2:]
    patch = int((transformer.config.in_channels / images.shape[1]) ** 0.5)
    tokens = transformer(
        hidden_states=pack(images, patch),
        timestep=timestep,
        encoder_hidden_states=words,
        pooled_projections=pooled,
        img_ids=position_ids(height // patch, width // patch, frame=frame, device=images.device),
        txt_ids=torch.zeros(words.shape[1], 3, device=images.device),
        return_dict=False,
    )[0]
    return unpack(tokens, patch, height, width)


class TextPipeline(PixelPipeline):
    """Text-to-image sampling in pixel space with classifier-free guidance, one pass per branch as in diffusers' FLUX.

    Args:
        transformer: predicts the flow velocity of packed pixels.
        text_encoder: gives an embedding per word; their mean is the pooled one.
        tokenizer: pads and cuts to `model_max_length` words.
        scheduler: any flow-matching scheduler.
        image_size: pixels along a side.
        smooth_sigma: width, in units of the 1000 training times, of the low-pass of the clock that the weights hold.
    """

    model_cpu_offload_seq = "text_encoder->transformer"

    def __init__(
        self,
        transformer: FluxTransformer2DModel,
        text_encoder: nn.Module,  # as transformers' T5EncoderModel, which may not be installed
        tokenizer: object,  # as its PreTrainedTokenizerFast
        scheduler: FlowMatchEulerDiscreteScheduler,
        image_size: int = 64,
        smooth_sigma: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, text_encoder=text_encoder, tokenizer=tokenizer, scheduler=scheduler
        )
        self.register_to_config(image_size=image_size, smooth_sigma=smooth_sigma)

    @property
    def bands(self) -> int:
        """Channels of an image."""
        return 3

    @property
    def patch_size(self) -> int:
        """Pixels along a side of a token."""
        return int((self.transformer.config.in_channels / self.bands) ** 0.5)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 3.0,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_images_per_prompt: int = 1,
        generator: Generators | None = None,
        latents: Tensor | None = None,
        prompt_embeds: Tensor | None = None,
        pooled_prompt_embeds: Tensor | None = None,
        negative_prompt_embeds: Tensor | None = None,
        negative_pooled_prompt_embeds: Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample images from prompts; those of one prompt stand together.

        Args:
            prompt: one, or one per image set; None needs `prompt_embeds` and `pooled_prompt_embeds`.
            num_inference_steps: sampling steps.
            guidance_scale: v = v_negative + scale * (v_prompt - v_negative); 1 or less runs the prompt's branch alone.
            negative_prompt: what to lead away from; None is the empty text. One, or one per prompt.
            num_images_per_prompt: images of each prompt.
            generator: one for the batch, or a list with one per image.
            latents: starting noise (images, 3, size, size), drawn from `generator` when None.
            prompt_embeds, pooled_prompt_embeds: what `encode_prompt` gives; the negative ones likewise.
            output_type: "pil", "np" (images, size, size, 3) or "pt" (images, 3, size, size), both in [0, 1], or
                "latent" (images, 3, size, size), unclipped, in [-1, 1].
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}) after every step; may return
                a dict with other latents.

        Raises:
            ValueError: no prompt or two, texts that are no strings, counts that do not fit, wrong latents.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        if num_images_per_prompt < 1:
            raise ValueError(f"num_images_per_prompt must be at least 1, got {num_images_per_prompt}")
        guided = guidance_scale > 1
        given = self._embeddings("prompt", prompt, prompt_embeds, pooled_prompt_embeds)
        branches = {"cond": given}
        if guided:
            if negative_prompt is None and negative_prompt_embeds is None:
                negative_prompt = ""
            branches["uncond"] = self._embeddings(
                "negative_prompt", negative_prompt, negative_prompt_embeds, negative_pooled_prompt_embeds,
                count=len(given[0]),
            )  # fmt: skip
        branches = {
            name: (
                words.repeat_interleave(num_images_per_prompt, dim=0),
                pooled.repeat_interleave(num_images_per_prompt, dim=0),
            )
            for name, (words, pooled) in branches.items()
        }
        x = self.prepare_latents(len(branches["cond"][0]), generator, latents)  # (B, 3, size, size)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self._velocity(x, t, branches, guidance_scale)

        return self.sample(
            x,
            velocity,
            num_inference_steps,
            output_type=output_type,
            return_dict=return_dict,
            callback=callback_on_step_end,
        )

    @torch.no_grad()
    def guided_velocity(self, x: Tensor, timestep: Tensor, prompts: Sequence[str], *, guidance_scale: float) -> Tensor:
        """Return the velocity that one sampling step uses, of the shape of `x`.

        Args:
            x: states (batch, 3, size, size).
            timestep: of all states, a scalar tensor.
            prompts: one per state.
            guidance_scale: above 1 away from the empty text.
        """
        branches = {"cond": self._embeddings("prompt", prompts, None, None)}
        if guidance_scale > 1:
            branches["uncond"] = self._embeddings("negative_prompt", "", None, None, count=len(x))
        return self._velocity(x, timestep, branches, guidance_scale)

    def guidance_at(self, timesteps: Tensor, guidance_scale: float) -> Tensor:
        """Return the scale in force at timesteps, of their shape: the same at all of them."""
        return torch.full_like(timesteps, guidance_scale, dtype=torch.float32)

    def _velocity(self, x: Tensor, t: Tensor, branches: dict[str, tuple[Tensor, Tensor]], scale: float) -> Tensor:
        frame, longest = self.config.image_size // self.patch_size, self.scheduler.config.num_train_timesteps
        time, found = (t / longest).to(x.dtype).expand(len(x)), {}
        for name, (words, pooled) in branches.items():
            with self.transformer.cache_context(name):
                found[name] = predict_velocity(self.transformer, x, time, words, pooled, frame=frame)
        if "uncond" not in found:
            return found["cond"]
        return found["uncond"] + scale * (found["cond"] - found["uncond"])

    @torch.no_grad()
    def encode_prompt(self, prompt: str | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings of the words of prompts (B, length, width) and their means (B, width).

        Words that the model has never seen count as one and the same unknown word.
        """
        texts = [prompt] if isinstance(prompt, str) else list(prompt)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"prompt must be a text or a list of texts, got {prompt!r}")
        tokens = self.tokenizer(
            [text.lower() for text in texts], padding="max_length", truncation=True, return_tensors="pt"
        )
        device = self._execution_device
        return encode_tokens(self.text_encoder, tokens.input_ids.to(device), tokens.attention_mask.to(device))

    def unknown_words(self, prompt: str) -> list[str]:
        """Return the words of a prompt that the model has never seen."""
        return [word for word in prompt.lower().split() if word not in self.tokenizer.get_vocab()]

    def _embeddings(
        self,
        name: str,
        texts: str | Sequence[str] | None,
        embeds: Tensor | None,
        pooled: Tensor | None,
        count: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        if (texts is None) == (embeds is None):
            raise ValueError(f"pass either {name} or {name}_embeds, got {'neither' if texts is None else 'both'}")
        if embeds is None:
            assert texts is not None
            found = self.encode_prompt(texts)
        elif pooled is None or len(pooled) != len(embeds):
            raise ValueError(f"{name}_embeds needs the pooled embeddings that encode_prompt gives beside it")
        else:
            found = embeds.to(self._execution_device), pooled.to(self._execution_device)
        if count is not None and len(found[0]) == 1:
            found = found[0].expand(count, -1, -1), found[1].expand(count, -1)
        if count is not None and len(found[0]) != count:
            raise ValueError(f"one {name} per prompt, got {len(found[0])} for {count} prompts")
        return found

    def prepare_latents(
        self,
        count: int,
        generator: Generators | None = None,
        latents: Tensor | None = None,
    ) -> Tensor:
        """Starting noise (count, 3, size, size): `latents`, or drawn from `generator`.

        Raises ValueError on latents of another shape or a list of generators of another length.
        """
        size = self.config.image_size
        if isinstance(generator, list) and len(generator) != count:
            raise ValueError(f"one generator per image, got {len(generator)} for {count} images")
        return self.starting_noise((count, self.bands, size, size), generator, latents)
