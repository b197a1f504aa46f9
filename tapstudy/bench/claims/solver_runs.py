"""Accelerated and exact trajectories of one sampler, with the exact velocity at every state either of them visits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from tqdm.auto import tqdm

from tapstudy.bench.image_set import BATCH, ImageSet
from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.handle import apply_policy
from tapstudy.instrument.latent import to_tokens
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.models.text_pipeline import TextPipeline, pack
from tapstudy.policies.base import Policy

REFERENCE = "reference"


def solver_runs(
    pipe: EmbeddedPipeline,
    policies: Mapping[str, Policy],
    images: ImageSet,
    *,
    batch_size: int = BATCH,
    progress: bool = True,
) -> xr.Dataset:
    """Sample `images` exactly and under every policy, and ask the plain model for its velocity at all visited states.

    One sampling step is x_(i+1) = x_i + (sigma_(i+1) - sigma_i) v_i. What a policy used for v_i is read off its states;
    what it should have used is the guided velocity of the plain model at the same x_i.

    Args:
        pipe: an embedded pipeline with a deterministic Euler scheduler, without a policy.
        policies: name -> policy that has seen nothing. They start from the same noise.
        images: what to sample with it.
        batch_size: images of one call.

    Returns:
        In memory, float32: `state` (policy, sample, node, token, latent_channel) with one node more than steps,
        `velocity_used` and `velocity_exact` (policy, sample, step, token, latent_channel),
        `is_full` (policy, sample, step). Policy "reference" comes first. Coordinates: `sigma` and `timestep` on step,
        `node_sigma` on node, `seed` and `label` on sample, `row` and `col` on token.

    Raises:
        TypeError, ValueError: another pipeline or scheduler, no images.

    Cost: per sample a full pass per step and policy for the exact velocities, beside the runs themselves.
    """
    check_sampler(pipe, "solver_runs")
    if REFERENCE in policies:
        raise ValueError(f"solver_runs: the name {REFERENCE!r} is taken by the exact run: rename that policy")
    if not len(images):
        raise ValueError("solver_runs: there are no images to sample")
    pipe.set_progress_bar_config(disable=True)
    parts, batches = [], images.batches(batch_size)
    with tqdm(total=len(batches) * (1 + len(policies)), desc="runs", unit="run", disable=not progress) as bar:
        for batch in batches:
            parts.append(_run_batch(pipe, policies, batch, bar=bar))
    return xr.concat(parts, dim="sample", coords="minimal", compat="override").transpose("policy", "sample", ...)


def check_sampler(pipe: EmbeddedPipeline, who: str) -> None:
    """Raise TypeError or ValueError for a pipeline whose steps are not those of a deterministic Euler sampler."""
    if not isinstance(pipe, EmbeddedPipeline):
        raise TypeError(f"{who} needs an embedded pipeline, got {type(pipe).__name__}")
    scheduler = pipe.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"{who} reads velocities off the states: it needs a deterministic FlowMatchEulerDiscreteScheduler, "
            f"got {type(scheduler).__name__}"
        )


def _run_batch(pipe: EmbeddedPipeline, policies: Mapping[str, Policy], batch: ImageSet, *, bar: Any) -> xr.Dataset:
    noise = pipe.prepare_latents(len(batch), batch.generators())  # (B, C, H, W)
    exact_path = sample_path(pipe, batch, noise)  # (T + 1, B, C, H, W)
    timesteps, sigmas = pipe.scheduler.timesteps, pipe.scheduler.sigmas.double().cpu().numpy()
    gaps = torch.tensor(np.diff(sigmas)).view(-1, 1, 1, 1, 1)
    to_tokens, columns = tokens_of(pipe, noise)
    tokens = lambda path: torch.stack([to_tokens(states) for states in path]).cpu().numpy()  # noqa: E731
    used = lambda after, before: tokens(((after.double() - before.double()).cpu() / gaps).float())  # noqa: E731

    rows = []
    for name, policy in ((REFERENCE, None), *policies.items()):
        mask, path = "F" * batch.steps, exact_path
        if policy is not None:
            with apply_policy(pipe, policy) as handle:
                path = sample_path(pipe, batch, noise)
                mask = handle.summary().contexts[0].mask
        rows.append(
            xr.Dataset(
                {
                    "state": (("node", "sample", "token", "latent_channel"), tokens(path)),
                    "velocity_used": (("step", "sample", "token", "latent_channel"), used(path[1:], path[:-1])),
                    "velocity_exact": (
                        ("step", "sample", "token", "latent_channel"),
                        tokens(_velocities(pipe, batch, path, timesteps)),
                    ),
                    "is_full": (
                        ("sample", "step"),
                        np.array([[letter == "F" for letter in mask]] * len(batch.labels), "i1"),
                    ),
                }
            )
        )
        bar.set_postfix_str(name)
        bar.update()
    runs = xr.concat(rows, dim="policy")
    number = np.arange(runs.sizes["token"])
    runs = runs.assign_coords(
        policy=[REFERENCE, *policies],
        step=np.arange(batch.steps),
        timestep=("step", timesteps.double().cpu().numpy()),
        sigma=("step", sigmas[:-1]),
        node_sigma=("node", sigmas),
        seed=("sample", batch.noise_seeds),
        label=("sample", [str(label) for label in batch.labels]),
        row=("token", number // columns),
        col=("token", number % columns),
    )
    for name, text in _TEXTS.items():
        runs[name].attrs = {"long_name": text, "units": "1"}
    return runs.transpose("policy", "sample", "node", "step", "token", "latent_channel")


_TEXTS = {
    "state": "state of the sampler before each step, and after the last",
    "velocity_used": "guided velocity the sampler used",
    "velocity_exact": "guided velocity of the plain model at the same state",
    "is_full": "the model ran in full (1) or was skipped (0)",
    "timestep": "timestep given to the model",
    "sigma": "noise level before the step",
    "node_sigma": "noise level of the state",
    "seed": "seed of the noise",
    "label": "label",
    "row": "row of the token",
    "col": "column of the token",
}


def sample_path(
    pipe: EmbeddedPipeline, batch: ImageSet, noise: Tensor, told: Callable[[Tensor], None] | None = None
) -> Tensor:
    """Return all states (T + 1, B, C, H, W), each `told` as soon as it is there."""
    states = [noise]

    def keep(_: Any, __: int, ___: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"].clone())
        if told is not None:
            told(states[-1])
        return {}

    pipe(
        batch.labels,  # type: ignore[arg-type]
        batch.steps,
        batch.guidance,  # type: ignore[arg-type]
        latents=noise,
        output_type="latent",
        callback_on_step_end=keep,
    )
    return torch.stack(states)


def _velocities(pipe: EmbeddedPipeline, batch: ImageSet, path: Tensor, timesteps: Tensor) -> list[Tensor]:
    """Ask the plain model at every state but the last, batched as the pipeline batches them."""
    return [
        pipe.guided_velocity(states, t, batch.labels, guidance_scale=batch.guidance)  # type: ignore[arg-type]
        for states, t in zip(path[:-1], timesteps, strict=True)
    ]


def tokens_of(pipe: EmbeddedPipeline, noise: Tensor) -> tuple[Callable[[Tensor], Tensor], int]:
    """Tell what turns states (B, C, H, W) into tokens (B, N, D), and the columns of their grid."""
    if isinstance(pipe, TextPipeline):
        return lambda states: pack(states, pipe.patch_size), noise.shape[-1] // pipe.patch_size
    adapter = find_adapter(pipe.transformer)
    assert adapter is not None  # apply_policy would have refused the pipeline
    grid = adapter.grid(pipe.transformer, {adapter.latent: noise})
    return lambda states: to_tokens(states, grid, adapter.channel_dim), grid[2]
