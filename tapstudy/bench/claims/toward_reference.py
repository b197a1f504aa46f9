"""The greedy choice toward the unaccelerated trajectory, which no method has: what knowing where to go can be worth.

At a skip step it knows the state that the unaccelerated sampler has next, and chooses, for every token, the predictor
that takes the accelerated sampler nearest to it: past what skip steps did wrong before, unlike a choice by true errors.
It is no bound: step by step the nearest state need not lead to the nearest image, and both guidance branches take the
same predictor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from tapstudy.bench.claims.solver_runs import check_sampler, sample_path, tokens_of
from tapstudy.bench.image_set import BATCH, ImageSet
from tapstudy.core.scoring import predictor_losses
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig

Aim = tuple[Tensor, float]  # the residual wanted, (image, token, patch values), and the scale of guidance


class TowardReferencePolicy(AnchoredPolicy):
    """Choose the predictor whose guided residual is nearest to a wanted one, the same in both branches of a batch.

    Args:
        config: with the residual in latent space, where the sampler's next state is linear in it.
        wanted: tells the residual that would end the step at the reference's state, and the guidance, by step.

    Raises:
        ValueError: the residual is elsewhere.
    """

    def __init__(self, config: TAPConfig, wanted: Callable[[int], Aim]) -> None:
        if config.residual != "latent":
            raise ValueError(f"TowardReferencePolicy needs residual='latent', got {config.residual!r}")
        super().__init__(config)
        self.wanted = wanted

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        wanted, scale = self.wanted(step)
        found, residuals = self.candidates(step), self.anchors.residuals
        branches = len(residuals[0]) // len(wanted)
        guided = [_guided(one, scale) if branches == 2 else one for one in residuals]
        relative = predictor_losses(guided, wanted, found.weights, distance="l2")
        size = torch.linalg.vector_norm(wanted, dim=-1, keepdim=True)
        losses = (relative * size).square().repeat(branches, 1, 1)  # tokens that choose together add up squares
        return self.apply(found, self.select(losses), losses)


def _guided(both: Tensor, scale: float) -> Tensor:
    labelled, free = both.chunk(2)
    return free + scale * (labelled - free)


def toward_reference(
    pipe: EmbeddedPipeline, images: ImageSet, configs: Mapping[str, TAPConfig], *, progress: bool = True
) -> dict[str, xr.Dataset]:
    """Sample images with every choice made toward the reference.

    Args:
        pipe: an embedded pipeline of labels, with a deterministic Euler scheduler, without a policy.
        images: what to sample.
        configs: schedule, family and granularity by name.

    Returns:
        By name: `image` (sample, band, y, x) in [0, 1] and `mask` (sample), as `engine.run` has them.

    Raises:
        TypeError, ValueError: another pipeline or scheduler. Branches that are passes of their own, as those of prompts
            are, do not know of one another when one of them chooses.

    Cost: one unaccelerated run, and an accelerated one for every name.
    """
    if not isinstance(pipe, LabelPipeline):
        raise TypeError(f"toward_reference needs a pipeline with both branches in one batch, got {type(pipe).__name__}")
    check_sampler(pipe, "toward_reference")
    pipe.set_progress_bar_config(disable=True)
    parts: dict[str, list[xr.Dataset]] = {name: [] for name in configs}
    batches = images.batches(BATCH)
    with tqdm(total=len(batches) * len(configs), desc="toward", unit="run", disable=not progress) as bar:
        for batch in batches:
            noise = pipe.prepare_latents(len(batch), batch.generators())
            reference = sample_path(pipe, batch, noise)  # (T + 1, B, C, H, W)
            for name, config in configs.items():
                parts[name].append(_run(pipe, batch, reference, config))
                bar.update()
    return {name: xr.concat(found, dim="sample") for name, found in parts.items()}


def _run(pipe: LabelPipeline, batch: ImageSet, reference: Tensor, config: TAPConfig) -> xr.Dataset:
    timesteps, sigmas = pipe.scheduler.timesteps, pipe.scheduler.sigmas
    to_tokens, _ = tokens_of(pipe, reference[0])
    states = [reference[0]]

    def wanted(step: int) -> Aim:
        state = states[-1]
        velocity = (reference[step + 1] - state) / (sigmas[step + 1] - sigmas[step])
        scale = float(pipe.guidance_at(timesteps[step], batch.guidance or 1.0))
        return to_tokens(velocity - state), scale

    with apply_policy(pipe, TowardReferencePolicy(config, wanted)) as handle:
        path = sample_path(pipe, batch, reference[0], states.append)
        mask = handle.summary().contexts[0].mask
    image = (path[-1] / 2 + 0.5).clamp(0, 1)
    return xr.Dataset(
        {
            "image": (("sample", "band", "y", "x"), image.cpu().numpy()),
            "mask": ("sample", np.array([mask] * len(batch), dtype=object)),
        },
        coords={"seed": ("sample", batch.seeds), "label": ("sample", batch.texts)},
    )
