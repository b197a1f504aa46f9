"""What the sampling pipelines of the embedded models share: flow matching in pixel space, without an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.image_processor import VaeImageProcessor
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator]
StepCallback = Callable[[Any, int, Tensor, dict[str, Any]], dict[str, Any]]


class PixelPipeline(DiffusionPipeline):
    """Sampling of images (batch, bands, height, width) in [-1, 1] from a velocity; not to be used by itself."""

    _callback_tensor_inputs = ("latents",)

    def __init__(self) -> None:
        super().__init__()
        self.image_processor = VaeImageProcessor(vae_scale_factor=1)

    def sample(
        self,
        x: Tensor,
        velocity: Callable[[Tensor, Tensor], Tensor],
        num_inference_steps: int,
        *,
        output_type: str,
        return_dict: bool,
        callback: StepCallback | None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Integrate from the noise `x`; the rest is what a pipeline's call is given.

        Args:
            velocity: of a state and a timestep, with the guidance that one step uses.
        """
        self.scheduler.set_timesteps(num_inference_steps, device=x.device)
        if hasattr(self.scheduler, "set_begin_index"):
            self.scheduler.set_begin_index(0)  # else it looks for the first timestep, which waits for the device
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            x = self.scheduler.step(velocity(x, t), t, x, return_dict=False)[0]
            if callback is not None:
                x = (callback(self, i, t, {"latents": x}) or {}).get("latents", x)

        images = self.image_processor.postprocess(x, output_type=output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def starting_noise(
        self, shape: tuple[int, ...], generator: Generators | None = None, latents: Tensor | None = None
    ) -> Tensor:
        """Noise of a shape: `latents`, or drawn from `generator`. Raises ValueError on latents of another shape."""
        device, dtype = self._execution_device, self.transformer.dtype
        if latents is None:
            return randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents must have shape {shape}, got {tuple(latents.shape)}")
        return latents.to(device, dtype)
