"""The sampling pipeline of the embedded models: class labels in, images out, no text and no autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput

from tapstudy.models.pixel_pipeline import Generators, PixelPipeline, StepCallback


def flow_matching_scheduler(shift: float = 1.0) -> FlowMatchEulerDiscreteScheduler:
    """Return the scheduler of the embedded models: 1000 training times; a shift above 1 spends more steps on noise."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)


class LabelPipeline(PixelPipeline):
    """Class-conditional sampling in pixel space with classifier-free guidance.

    Args:
        transformer: predicts the flow velocity; class `num_embeds_ada_norm` means "no label".
        scheduler: any flow-matching scheduler.
        guidance_stop: guidance ends where the noise level sigma, in [0, 1], falls to this; from there on the labelled
            branch alone counts. A stop above 0 keeps the
            samples of a class as varied as its images: T. Kynkaanniemi et al., arXiv 2404.07724.
        smooth_sigma: width, in units of the 1000 training times, of the low-pass of the clock that the weights hold.
    """

    model_cpu_offload_seq = "transformer"

    def __init__(
        self,
        transformer: DiTTransformer2DModel,
        scheduler: FlowMatchEulerDiscreteScheduler,
        guidance_stop: float = 0.0,
        smooth_sigma: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= guidance_stop < 1:
            raise ValueError(f"guidance_stop is a noise level of at least 0 and below 1, got {guidance_stop}")
        self.register_modules(transformer=transformer, scheduler=scheduler)
        self.register_to_config(guidance_stop=guidance_stop, smooth_sigma=smooth_sigma)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 2.0,
        *,
        batch_size: int = 1,
        generator: Generators | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        idle_branch: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample one image per label.

        Args:
            class_labels: one label or one per image; None samples without a label (`batch_size` images, which
                needs `guidance_scale` 1: there is nothing to guide towards).
            num_inference_steps: sampling steps.
            guidance_scale: v = v_none + scale * (v_label - v_none) down to the noise level `guidance_stop` of the
                pipeline; 1 or less runs the labelled branch alone. Both branches run as one batch, labelled first.
            batch_size: number of images when there are no labels.
            generator: one for the batch, or a list with one per image.
            latents: starting noise (batch, channels, height, width), drawn from `generator` when None.
            output_type: "pil", "np" (batch, height, width, bands) or "pt" (batch, bands, height, width), both in
                [0, 1], or "latent" (batch, bands, height, width), unclipped, in [-1, 1].
            idle_branch: run the branch without labels where the guidance has stopped, too. All passes are then of one
                shape, as caches of features need; without them, False saves half of such a pass.
            callback_on_step_end: called as (pipeline, step, timestep, {"latents": ...}) after every step; may
                return a dict with other latents.

        Raises:
            ValueError: a label out of range, guidance without labels, bad step count, wrong latents.
        """
        null_label = self.transformer.config.num_embeds_ada_norm
        labels = self._check_labels(class_labels, batch_size, guidance_scale, null_label)
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps}")
        x = self.prepare_latents(len(labels), generator, latents)  # (B, C, H, W)
        labels = labels.to(x.device)
        both = self._of_both_branches(labels)  # one object for all steps, by which caches know their branch

        def velocity(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            scale = guidance_scale if idle_branch else float(self.guidance_at(t, guidance_scale))
            return self._velocity(x, t, both if scale > 1 else labels, scale)

        return self.sample(
            x,
            velocity,
            num_inference_steps,
            output_type=output_type,
            return_dict=return_dict,
            callback=callback_on_step_end,
        )

    @torch.no_grad()
    def guided_velocity(
        self, x: torch.Tensor, timestep: torch.Tensor, labels: Sequence[int] | torch.Tensor, *, guidance_scale: float
    ) -> torch.Tensor:
        """Return the velocity that one sampling step uses, of the shape of `x`.

        Args:
            x: states (batch, channels, height, width).
            timestep: of all states, a scalar tensor.
            labels: (batch,).
            guidance_scale: above 1 both branches run as one batch, labelled first, at all noise levels.
        """
        labels = torch.as_tensor(labels, device=x.device)
        return self._velocity(
            x, timestep, self._of_both_branches(labels) if guidance_scale > 1 else labels, guidance_scale
        )

    def _of_both_branches(self, labels: torch.Tensor) -> torch.Tensor:
        """Return the labels of a batch of both branches, labelled first."""
        return torch.cat([labels, torch.full_like(labels, self.transformer.config.num_embeds_ada_norm)])

    def _velocity(
        self, x: torch.Tensor, timestep: torch.Tensor, labels: torch.Tensor, guidance_scale: float
    ) -> torch.Tensor:
        guided = guidance_scale > 1
        model_input = torch.cat([x, x]) if guided else x
        velocity = self.transformer(
            model_input,
            timestep=timestep.to(x.dtype).expand(len(model_input)),  # the model tells its dtype slowly
            class_labels=labels,
            return_dict=False,
        )[0]
        if guided:
            labelled, free = velocity.chunk(2)
            scale = self.guidance_at(timestep, guidance_scale).to(velocity)
            velocity = free + scale * (labelled - free)  # (B, C, H, W)
        return velocity

    def guidance_at(self, timesteps: torch.Tensor, guidance_scale: float) -> torch.Tensor:
        """Return the scale in force at timesteps, of their shape: 1 once guidance has stopped. Waits for no device."""
        acts = timesteps > self.config.guidance_stop * self.scheduler.config.num_train_timesteps
        return 1 + (guidance_scale - 1) * acts.to(torch.float64 if timesteps.device.type == "cpu" else torch.float32)

    def prepare_latents(
        self,
        count: int,
        generator: Generators | None = None,
        latents: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Starting noise (count, channels, height, width): `latents`, or drawn from `generator`.

        Raises ValueError on latents of another shape.
        """
        config = self.transformer.config
        return self.starting_noise(
            (count, config.in_channels, config.sample_size, config.sample_size), generator, latents
        )

    @staticmethod
    def _check_labels(
        class_labels: int | Sequence[int] | torch.Tensor | None, batch_size: int, guidance_scale: float, null_label: int
    ) -> torch.Tensor:
        if class_labels is None:
            if guidance_scale > 1:
                raise ValueError(
                    f"guidance_scale {guidance_scale} needs class_labels: a sample without a label has nothing to be "
                    "guided towards; pass labels, or guidance_scale=1"
                )
            return torch.full((batch_size,), null_label)
        labels = torch.as_tensor(class_labels).reshape(-1)
        if labels.numel() == 0:
            raise ValueError("class_labels is empty: pass at least one label")
        if labels.is_floating_point() or labels.min() < 0 or labels.max() >= null_label:
            raise ValueError(f"class_labels must be integers in 0..{null_label - 1}, got {labels.tolist()}")
        return labels.long().cpu()
