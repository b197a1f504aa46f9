"""Accelerated and exact trajectories of one sampler, with the exact velocity at every state either of them visits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor
from tqdm.auto import tqdm

from tapstudy.instrument.adapters import Grid, find_adapter
from tapstudy.instrument.handle import apply_policy
from tapstudy.instrument.latent import to_tokens
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.base import Policy

REFERENCE = "reference"
KEYS = {"class_labels", "seed", "num_inference_steps", "guidance_scale"}


def solver_runs(
    pipe: LabelPipeline,
    policies: Mapping[str, Policy],
    calls: Sequence[Mapping[str, Any]],
    *,
    teacher_forced: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Sample `calls` exactly and under every policy, and ask the plain model for its velocity at all visited states.

    One sampling step is x_(i+1) = x_i + (sigma_(i+1) - sigma_i) v_i. What a policy used for v_i is read off its states;
    what it should have used is the guided velocity of the plain model at the same x_i.

    Args:
        pipe: a label pipeline with a deterministic Euler scheduler, without a policy.
        policies: name -> policy that has seen nothing. They start from the same noise.
        calls: as for `tapstudy.record`: class_labels (a list), seed (an integer, or one per label),
            num_inference_steps, guidance_scale; all with the same number of steps.
        teacher_forced: also let every policy predict along the exact trajectory (each state is put back on it).

    Returns:
        In memory, float32: `state` (policy, sample, node, token, latent_channel) with one node more than steps,
        `velocity_used` and `velocity_exact` (policy, sample, step, token, latent_channel), `velocity_forced` if asked,
        `is_full` (policy, sample, step). Policy "reference" comes first. Coordinates: `sigma` and `timestep` on step,
        `node_sigma` on node, `seed` and `label` on sample, `row` and `col` on token.

    Raises:
        TypeError, ValueError: another pipeline or scheduler, calls that cannot be meant or disagree in steps.

    Cost: per sample a full pass per step and policy for the exact velocities, beside the runs themselves.
    """
    _check(pipe, policies)
    batches = [_Batch.of(index, call) for index, call in enumerate(calls)]
    if not batches:
        raise ValueError("solver_runs: there are no calls to sample")
    if len({batch.steps for batch in batches}) > 1:
        raise ValueError(f"solver_runs: the calls must agree in steps, got {[batch.steps for batch in batches]}")
    pipe.set_progress_bar_config(disable=True)
    parts = []
    with tqdm(total=len(batches) * (1 + len(policies)), desc="runs", unit="run", disable=not progress) as bar:
        for batch in batches:
            parts.append(_run_batch(pipe, policies, batch, teacher_forced=teacher_forced, bar=bar))
    return xr.concat(parts, dim="sample", coords="minimal", compat="override").transpose("policy", "sample", ...)


@dataclass(frozen=True)
class _Batch:
    labels: list[int]
    seeds: list[int]
    shared: bool  # one generator for the whole batch
    steps: int
    guidance: float

    @classmethod
    def of(cls, index: int, call: Mapping[str, Any]) -> _Batch:
        unknown = sorted(call.keys() - KEYS)
        if unknown or not {"class_labels", "seed"} <= call.keys():
            raise ValueError(
                f"solver_runs: call {index} needs class_labels and seed and may have {sorted(KEYS)}, got {sorted(call)}"
            )
        named = call["class_labels"]
        labels = list(named) if isinstance(named, list | tuple) else [named]
        seed = call["seed"]
        shared = not isinstance(seed, list | tuple)
        seeds = [seed] * len(labels) if shared else list(seed)
        if len(seeds) != len(labels):
            raise ValueError(f"solver_runs: call {index} has {len(labels)} labels, but {len(seeds)} seeds")
        return cls(labels, seeds, shared, call.get("num_inference_steps", 50), call.get("guidance_scale", 2.0))

    def noise(self, pipe: LabelPipeline) -> Tensor:
        """(B, C, H, W), as the pipeline draws it from the generators of `tapstudy.record`."""
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        return pipe.prepare_latents(len(self.labels), generators[0] if self.shared else generators)


def _check(pipe: LabelPipeline, policies: Mapping[str, Policy]) -> None:
    if not isinstance(pipe, LabelPipeline):
        raise TypeError(f"solver_runs needs a LabelPipeline, got {type(pipe).__name__}")
    scheduler = pipe.scheduler
    if not isinstance(scheduler, FlowMatchEulerDiscreteScheduler) or scheduler.config.get("stochastic_sampling"):
        raise ValueError(
            f"solver_runs reads velocities off the states: it needs a deterministic FlowMatchEulerDiscreteScheduler, "
            f"got {type(scheduler).__name__}"
        )
    if REFERENCE in policies:
        raise ValueError(f"solver_runs: the name {REFERENCE!r} is taken by the exact run: rename that policy")


def _run_batch(
    pipe: LabelPipeline, policies: Mapping[str, Policy], batch: _Batch, *, teacher_forced: bool, bar: Any
) -> xr.Dataset:
    noise = batch.noise(pipe)
    exact_path = _sample(pipe, batch, noise)  # (T + 1, B, C, H, W)
    timesteps, sigmas = pipe.scheduler.timesteps, pipe.scheduler.sigmas.double().cpu().numpy()
    gaps = torch.tensor(np.diff(sigmas)).view(-1, 1, 1, 1, 1)
    grid, channel_dim = _grid(pipe, noise)
    tokens = lambda path: torch.stack([to_tokens(states, grid, channel_dim) for states in path]).cpu().numpy()  # noqa: E731
    used = lambda after, before: tokens(((after.double() - before.double()).cpu() / gaps).float())  # noqa: E731

    rows = []
    for name, policy in ((REFERENCE, None), *policies.items()):
        mask, forced = "F" * batch.steps, exact_path
        path = exact_path
        if policy is not None:
            with apply_policy(pipe, policy) as handle:
                path = _sample(pipe, batch, noise)
                mask = handle.summary().contexts[0].mask
                if teacher_forced:
                    forced = _sample(pipe, batch, noise, onto=exact_path)
        row = {
            "state": (("node", "sample", "token", "latent_channel"), tokens(path)),
            "velocity_used": (("step", "sample", "token", "latent_channel"), used(path[1:], path[:-1])),
            "velocity_exact": (
                ("step", "sample", "token", "latent_channel"),
                tokens(_velocities(pipe, batch, path, timesteps)),
            ),
            "is_full": (("sample", "step"), np.array([[letter == "F" for letter in mask]] * len(batch.labels), "i1")),
        }
        if teacher_forced:
            row["velocity_forced"] = (row["velocity_used"][0], used(forced[1:], exact_path[:-1]))
        rows.append(xr.Dataset(row))
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
        seed=("sample", batch.seeds),
        label=("sample", [str(label) for label in batch.labels]),
        row=("token", number // grid[2]),
        col=("token", number % grid[2]),
    )
    for name, text in _TEXTS.items():
        if name in runs:
            runs[name].attrs = {"long_name": text, "units": "1"}
    return runs.transpose("policy", "sample", "node", "step", "token", "latent_channel")


_TEXTS = {
    "state": "state of the sampler before each step, and after the last",
    "velocity_used": "guided velocity the sampler used",
    "velocity_exact": "guided velocity of the plain model at the same state",
    "velocity_forced": "guided velocity the policy predicts along the exact trajectory",
    "is_full": "the model ran in full (1) or was skipped (0)",
    "timestep": "timestep given to the model",
    "sigma": "noise level before the step",
    "node_sigma": "noise level of the state",
    "seed": "seed of the noise",
    "label": "label",
    "row": "row of the token",
    "col": "column of the token",
}


def _sample(pipe: LabelPipeline, batch: _Batch, noise: Tensor, *, onto: Tensor | None = None) -> Tensor:
    """All states (T + 1, B, C, H, W). With `onto` each step starts from that path; states are then after one step."""
    states = [noise]

    def keep(_: Any, step: int, __: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"].clone())
        return {} if onto is None else {"latents": onto[step + 1]}

    pipe(
        batch.labels,
        batch.steps,
        batch.guidance,
        latents=noise,
        output_type="latent",
        callback_on_step_end=keep,
    )
    return torch.stack(states)


def _velocities(pipe: LabelPipeline, batch: _Batch, path: Tensor, timesteps: Tensor) -> list[Tensor]:
    """Of the plain model at every state but the last, batched as the pipeline batches them."""
    labels = torch.tensor(batch.labels, device=path.device)
    return [
        pipe.guided_velocity(states, t, labels, guidance_scale=batch.guidance)
        for states, t in zip(path[:-1], timesteps, strict=True)
    ]


def _grid(pipe: LabelPipeline, noise: Tensor) -> tuple[Grid, int]:
    adapter = find_adapter(pipe.transformer)
    assert adapter is not None  # apply_policy would have refused the pipeline
    return adapter.grid(pipe.transformer, {adapter.latent: noise}), adapter.channel_dim
