"""What recording costs on top of sampling, and how fast recorded features are rescored."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import xarray as xr

from tapstudy.analysis.rescoring import rescore
from tapstudy.policies.config import TAPConfig
from tapstudy.recording.record import record
from tapstudy.recording.schema import DEFAULT_FIELDS

# number of candidates -> shifts of the orders 0, 1 and 2
FAMILIES: dict[int, tuple[float, ...]] = {15: (0, 1, 2, 3, 4), 150: tuple(i / 10 for i in range(50))}
OUTPUTS = ("scores", "selected")


def recording_overhead(
    pipe: Any, *, labels: Sequence[int], steps: int = 50, repeats: int = 3
) -> dict[str, tuple[float, float]]:
    """Return median seconds of sampling a batch, and of recording it, with the share that recording adds.

    The runs alternate, so that a change of the machine's speed reaches all of them.

    Returns:
        For "sampling", "default fields" and "probe and residual": seconds and overhead.
    """
    call = {"class_labels": list(labels), "seed": list(range(len(labels))), "num_inference_steps": steps}
    fields = {"default fields": DEFAULT_FIELDS, "probe and residual": ("probe", "residual")}
    seconds: dict[str, list[float]] = {name: [] for name in ("sampling", *fields)}
    for _ in range(repeats):
        generators = [torch.Generator().manual_seed(seed) for seed in range(len(labels))]
        seconds["sampling"].append(_time(lambda: pipe(list(labels), steps, generator=generators, output_type="np")))  # noqa: B023
        for name, names in fields.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "run"
                seconds[name].append(_time(lambda: record(pipe, [call], path, fields=names, progress=False)))  # noqa: B023
    plain = median(seconds["sampling"])
    return {name: (median(values), median(values) / plain - 1) for name, values in seconds.items()}


def _time(run: Callable[[], object]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def rescoring_speed(*, samples: int = 8, repeats: int = 3, tokens: int = 196, channels: int = 192) -> xr.Dataset:
    """Measure scores per second of `rescore` on features in memory (two contexts), on all cores that dask uses.

    A score is the proxy loss and the true error of one predictor at one token and skip step; predictors that are
    identical count each. The runs alternate, so that a change of the machine's speed reaches all of them.

    Returns:
        Dims `candidates`, `output` ("scores": both losses of every token and predictor, "selected": `selected_only`).
        `seconds` and `cpu_seconds` (of all threads) are medians of the repeats, after one run that is not counted;
        `rate` is scores by wall time, `cpu_rate` by processor time, which other programs disturb less.
    """
    recording = synthetic_features(samples=samples, steps=50, tokens=tokens, channels=channels)
    plans = [
        [rescore(recording, TAPConfig(shifts=shifts), selected_only=output == "selected") for output in OUTPUTS]
        for shifts in FAMILIES.values()
    ]
    taken = np.empty((repeats + 1, 2, len(FAMILIES), len(OUTPUTS)))
    for repeat, row, column in np.ndindex(repeats + 1, *taken.shape[2:]):
        before = time.perf_counter(), time.process_time()
        plans[row][column].compute()
        after = time.perf_counter(), time.process_time()
        taken[repeat, :, row, column] = np.subtract(after, before)
    skips = int((plans[0][0]["is_full"] == 0).sum())
    scores = np.array(list(FAMILIES))[:, None] * skips * tokens
    seconds, cpu = np.median(taken[1:], axis=0)
    found = {
        "seconds": (seconds, "wall time", "s"),
        "cpu_seconds": (cpu, "processor time of all threads", "s"),
        "rate": (scores / seconds, "scores by wall time", "1/s"),
        "cpu_rate": (scores / cpu, "scores by processor time", "1/s"),
    }
    return xr.Dataset(
        {
            name: (("candidates", "output"), values, {"long_name": text, "units": units})
            for name, (values, text, units) in found.items()
        },
        coords={"candidates": list(FAMILIES), "output": list(OUTPUTS)},
    )


def synthetic_features(*, samples: int, steps: int, tokens: int, channels: int) -> xr.Dataset:
    """Draw `probe` and `residual` of a recording in memory, independent normal numbers, float32."""
    rng = np.random.default_rng(0)
    dims = ("sample", "context", "step", "token", "channel")
    attrs = {"long_name": "synthetic feature", "units": "1"}
    shape = (samples, 2, steps, tokens, channels)
    return xr.Dataset(
        {name: (dims, rng.standard_normal(shape, dtype=np.float32), attrs) for name in ("probe", "residual")}
    )
