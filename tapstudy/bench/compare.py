"""Methods side by side on one pipeline: full passes, FLOPs, latency, distance to the reference, label accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.bench.engine import run
from tapstudy.bench.frontier.plan import WARMUP
from tapstudy.bench.image_error import psnr
from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.judge import Judge
from tapstudy.bench.methods import find_method
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.policies.config import TAPConfig

METHODS = ("fewer", "order0", "order1", "order2", "tap")


def compare(
    pipe: EmbeddedPipeline,
    judge: Judge,
    images: ImageSet,
    *,
    intervals: Sequence[int] = (4, 6, 8),
    methods: Sequence[str] = METHODS,
) -> xr.Dataset:
    """Every method at every interval N on the schedule S(N, 3), beside the reference, in one run.

    Args:
        pipe: with the model of the images, without a policy.
        judge: of its images.
        methods: names in `bench.methods`, of those that need no fitting.

    Returns:
        Dims `run` (reference first), `sample`, `y`, `x`, `band`, with coordinates `method` and `interval` on run and
        `seed` and `label` on sample.
        `psnr` is on images clipped to [0, 1]; `latency` is the wall time of all samples, after a warm-up, on this
        machine and as loaded as it is.
    """
    plan = [("reference", 1), *((method, interval) for interval in intervals for method in methods)]
    pipe.set_progress_bar_config(disable=True)
    images.sample(pipe, steps=2)  # warm-up
    runs, flops = [], []
    for name, interval in tqdm(plan, desc="methods", unit="run"):
        method = find_method(name)
        config = method.config(TAPConfig(interval=interval, warmup_steps=WARMUP))
        found = run(pipe, images, method.setting(config, steps=images.steps))
        runs.append(found)
        flops.append(float(method.flops(pipe, images[:1], config).of(found["mask"].values[0])))
    made = [torch.from_numpy(found["image"].values) for found in runs]  # (B, band, row, column) each
    masks = [str(found["mask"].values[0]) for found in runs]
    dataset = xr.Dataset(
        {
            "image": (
                ("run", "sample", "band", "y", "x"),
                np.stack([found["image"].values for found in runs]),
                {"long_name": "image", "units": "1"},
            ),
            "psnr": (
                ("run", "sample"),
                np.stack([psnr(own, made[0], data_range=1.0) for own in made]),
                {"long_name": "PSNR to the reference (data range 1)", "units": "dB"},
            ),
            "correct": (
                ("run", "sample"),
                np.stack([judge.correct(own, images.labels) for own in made]),
                {"long_name": "classified as its label", "units": "1"},
            ),
            "full_passes": ("run", [mask.count("F") for mask in masks], {"long_name": "full passes", "units": "1"}),
            "mask": ("run", masks, {"long_name": "F: full step, .: skip step"}),
            "flops": (
                "run",
                flops,
                {"long_name": "FLOPs of one image (multiply-add = 2, matrix products only)", "units": "1"},
            ),
            "latency": (
                "run",
                [float(found["seconds"].sum()) for found in runs],
                {"long_name": "wall time of all samples", "units": "s"},
            ),
        },
        coords={
            "method": ("run", [find_method(name).title or name for name, _ in plan]),
            "interval": ("run", [interval for _, interval in plan]),
            "seed": ("sample", images.seeds),
            "label": ("sample", images.labels),
        },
    )
    return dataset.assign(
        flops_ratio=(dataset.flops[0] / dataset.flops).assign_attrs(long_name="FLOPs of the reference over own"),
        latency_ratio=(dataset.latency[0] / dataset.latency).assign_attrs(long_name="time of the reference over own"),
    ).assign_attrs(steps=images.steps, guidance_scale=images.guidance, warmup_steps=WARMUP)


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
