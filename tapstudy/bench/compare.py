"""Methods side by side on one pipeline: full passes, FLOPs, latency, distance to the reference, label accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.bench.engine import run
from tapstudy.bench.frontier.plan import WARMUP
from tapstudy.bench.image_error import MEASURES, measures
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
    """Return every method at every interval N on the schedule S(N, 3), beside the reference, in one run.

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
        runs.append(run(pipe, images, method.setting(config, steps=images.steps)))
        flops.append(float(method.flops(pipe, images[:1], config).of(runs[-1]["mask"].values[0])))
    found = [measures(own, runs[0], judge) for own in runs]
    masks = [str(own["mask"].values[0]) for own in runs]
    of_images, of_runs = ("run", "sample"), ("run",)
    columns: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
        "image": ((*of_images, "band", "y", "x"), np.stack([own["image"].values for own in runs]), "image", "1"),
        "psnr": (of_images, np.stack([one["psnr"] for one in found]), *MEASURES["psnr"]),
        "correct": (of_images, np.stack([one["correct"] for one in found]), *MEASURES["correct"]),
        "full_passes": (of_runs, [mask.count("F") for mask in masks], "full passes", "1"),
        "mask": (of_runs, masks, "F: full step, .: skip step", "1"),
        "flops": (of_runs, flops, "FLOPs of one image (multiply-add = 2, matrix products only)", "1"),
        "latency": (of_runs, [float(own["seconds"].sum()) for own in runs], "wall time of all samples", "s"),
    }
    dataset = xr.Dataset(
        {
            name: (dims, values, {"long_name": text, "units": units})
            for name, (dims, values, text, units) in columns.items()
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
    """Return the comparison as rows of text."""
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
