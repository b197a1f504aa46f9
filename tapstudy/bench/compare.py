"""Methods side by side on one pipeline: full passes, FLOPs, latency, distance to the reference, label accuracy."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from tapstudy.bench.flops import step_flops
from tapstudy.bench.image_error import psnr
from tapstudy.core.schedule import full_steps, mask_text
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.base import Policy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy


@dataclass(frozen=True)
class Method:
    """A row of the comparison: `policy` makes one for a schedule, None means plain sampling with fewer steps."""

    name: str
    policy: Callable[[TAPConfig], Policy] | None


METHODS = (
    Method("fewer steps", None),
    Method("FORA (order 0)", lambda config: FixedPolicy(0, config=config)),
    Method("Taylor order 1", lambda config: FixedPolicy(1, config=config)),
    Method("Taylor order 2", lambda config: FixedPolicy(2, config=config)),
    Method("TAP", TAPPolicy),
)


@dataclass(frozen=True)
class Request:
    """What every method is asked for: one image per seed and label, `batch_size` at a time."""

    labels: tuple[int, ...] = tuple(range(10))
    seeds: tuple[int, ...] = (0, 1)
    steps: int = 50
    guidance_scale: float = 2.0
    batch_size: int = 10  # larger ones leave the processor's cache: a fifth slower an image at 20

    @property
    def pairs(self) -> list[tuple[int, int]]:
        return [(seed, label) for seed in self.seeds for label in self.labels]

    def sample(self, pipe: LabelPipeline, steps: int | None = None, limit: int | None = None) -> Tensor:
        """Images in [0, 1], (batch, band, row, column). Every (seed, label) has its own noise."""
        pairs = self.pairs[:limit]
        batches = [pairs[i : i + self.batch_size] for i in range(0, len(pairs), self.batch_size)]
        return torch.cat([self._sample_batch(pipe, batch, steps or self.steps) for batch in batches])

    def _sample_batch(self, pipe: LabelPipeline, pairs: list[tuple[int, int]], steps: int) -> Tensor:
        generators = [torch.Generator().manual_seed(1000 * seed + label) for seed, label in pairs]
        (latents,) = pipe(
            [label for _, label in pairs],
            steps,
            self.guidance_scale,
            generator=generators,
            output_type="latent",
            return_dict=False,
        )
        return latents / 2 + 0.5


def compare(
    pipe: LabelPipeline,
    classifier: Classifier,
    *,
    request: Request | None = None,
    intervals: Sequence[int] = (4, 6, 8),
    methods: Sequence[Method] = METHODS,
) -> xr.Dataset:
    """Every method at every interval N on the schedule S(N, 3), beside the reference, in one run.

    Returns:
        Dims `run` (reference first), `sample`, `y`, `x`, with coordinates `method` and `interval` on run and `seed`
        and `label` on sample.
        `psnr` is on images clipped to [0, 1]; `latency` is the wall time of all samples, after a warm-up, on this
        machine and as loaded as it is.
    """
    request = request or Request()
    plan = [(Method("reference", None), 1)]
    plan += [(method, interval) for interval in intervals for method in methods]
    pipe.set_progress_bar_config(disable=True)
    request.sample(pipe, steps=2)  # warm-up
    rows = [
        _measure(pipe, method, interval, request=request) for method, interval in tqdm(plan, desc="methods", unit="run")
    ]
    reference = rows[0].images
    true_labels = torch.tensor([label for _, label in request.pairs])
    dataset = xr.Dataset(
        {
            "image": (
                ("run", "sample", "y", "x"),
                torch.stack([row.images[:, 0] for row in rows]).numpy(),
                {"long_name": "image", "units": "1"},
            ),
            "psnr": (
                ("run", "sample"),
                torch.stack([psnr(row.images, reference, data_range=1.0) for row in rows]).numpy(),
                {"long_name": "PSNR to the reference (data range 1)", "units": "dB"},
            ),
            "correct": (
                ("run", "sample"),
                torch.stack([classify(classifier, 2 * row.images - 1)[0] == true_labels for row in rows]).numpy(),
                {"long_name": "classified as its label", "units": "1"},
            ),
            "full_passes": ("run", [row.mask.count("F") for row in rows], {"long_name": "full passes", "units": "1"}),
            "mask": ("run", [row.mask for row in rows], {"long_name": "F: full step, .: skip step"}),
            "flops": (
                "run",
                [float(row.flops) for row in rows],
                {"long_name": "FLOPs of one image (multiply-add = 2, matrix products only)", "units": "1"},
            ),
            "latency": ("run", [row.seconds for row in rows], {"long_name": "wall time of all samples", "units": "s"}),
        },
        coords={
            "method": ("run", [method.name for method, _ in plan]),
            "interval": ("run", [interval for _, interval in plan]),
            "seed": ("sample", [seed for seed, _ in request.pairs]),
            "label": ("sample", true_labels.numpy()),
        },
    )
    return dataset.assign(
        flops_ratio=(dataset.flops[0] / dataset.flops).assign_attrs(long_name="FLOPs of the reference over own"),
        latency_ratio=(dataset.latency[0] / dataset.latency).assign_attrs(long_name="time of the reference over own"),
    ).assign_attrs(steps=request.steps, guidance_scale=request.guidance_scale, warmup_steps=3)


@dataclass(frozen=True)
class _Row:
    images: Tensor
    seconds: float
    mask: str
    flops: int


def _measure(pipe: LabelPipeline, method: Method, interval: int, *, request: Request) -> _Row:
    full = full_steps(request.steps, interval=interval, warmup_steps=3)
    steps = len(full) if method.policy is None else request.steps
    config = TAPConfig(interval=interval, warmup_steps=3)
    with apply_policy(pipe, method.policy(config)) if method.policy else nullcontext() as handle:
        started = time.perf_counter()
        images = request.sample(pipe, steps).clamp(0, 1)
        seconds = time.perf_counter() - started
        mask = handle.summary().contexts[0].mask if handle else mask_text(range(steps), steps)
    return _Row(images, seconds, mask, _flops(pipe, method, mask, request))


def _flops(pipe: LabelPipeline, method: Method, mask: str, request: Request) -> int:
    """FLOPs of one image."""
    policy = method.policy(TAPConfig(full_steps=(0, 1, 2))) if method.policy else None
    return step_flops(pipe, policy, lambda steps: request.sample(pipe, steps=steps, limit=1)).of(mask)


def table_rows(dataset: xr.Dataset, interval_of: Callable[[np.ndarray], tuple[float, float, float]]) -> list[list[str]]:
    """The comparison as rows of text."""
    rows = []
    for i in range(dataset.sizes["run"]):
        run = dataset.isel(run=i)
        reference = i == 0
        mean, low, high = (np.inf, np.inf, np.inf) if reference else interval_of(run.psnr.values)
        rows.append([
            "" if reference else f"{int(run.interval)}",
            str(run.method.item()),
            f"{int(run.full_passes)}",
            str(run["mask"].item()),
            f"{float(run.flops_ratio):.2f}",
            f"{float(run.latency_ratio):.2f}",
            "-" if reference else f"{mean:.2f} [{low:.2f}, {high:.2f}]",
            f"{100 * float(run.correct.mean()):.0f}%",
        ])  # fmt: skip
    return rows
