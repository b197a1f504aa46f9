"""How fast recorded features are rescored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import numpy as np
import xarray as xr

from tapstudy.analysis.rescoring import rescore
from tapstudy.policies.config import TAPConfig

# number of candidates -> shifts of the orders 0, 1 and 2
FAMILIES: dict[int, tuple[float, ...]] = {15: (0, 1, 2, 3, 4), 150: tuple(i / 10 for i in range(50))}


def rescoring_speed(
    *,
    candidates: Sequence[int] = (15, 150),
    samples: int = 8,
    steps: int = 50,
    tokens: int = 196,
    channels: int = 192,
    repeats: int = 3,
) -> xr.Dataset:
    """Scores per second of `rescore` on features in memory (two contexts), on all cores that dask uses.

    A score is the proxy loss and the true error of one predictor at one token and skip step; predictors that are
    identical count each. The runs take turns, so that a change of the machine's speed reaches all of them.

    Args:
        candidates: sizes of the family, of `FAMILIES`.

    Returns:
        Dims `candidates`, `output` ("scores": both losses of every token and predictor, "selected": `selected_only`).
        `seconds` and `cpu_seconds` (of all threads) are medians of the repeats, after one run that is not counted;
        `rate` is scores by wall time, `cpu_rate` by processor time, which other programs disturb less.

    Raises:
        ValueError: a size that is not in `FAMILIES`.
    """
    unknown = [count for count in candidates if count not in FAMILIES]
    if unknown:
        raise ValueError(f"rescoring_speed: no family of {unknown} candidates, choose from {sorted(FAMILIES)}")
    recording = synthetic_features(samples=samples, steps=steps, tokens=tokens, channels=channels)
    plans = {
        (count, output): rescore(recording, TAPConfig(shifts=FAMILIES[count]), selected_only=output == "selected")
        for count in candidates
        for output in ("scores", "selected")
    }
    wall: dict[tuple[int, str], list[float]] = {plan: [] for plan in plans}
    cpu: dict[tuple[int, str], list[float]] = {plan: [] for plan in plans}
    for turn in range(repeats + 1):
        for plan, lazy in plans.items():
            started, started_cpu = time.perf_counter(), time.process_time()
            lazy.compute()
            if turn:
                wall[plan].append(time.perf_counter() - started)
                cpu[plan].append(time.process_time() - started_cpu)
    skips = int((plans[candidates[0], "scores"]["is_full"] == 0).sum())
    index = {"candidates": list(candidates), "output": ["scores", "selected"]}
    scores = xr.DataArray([count * skips * tokens for count in candidates], dims="candidates")

    def table(seconds: dict[tuple[int, str], list[float]], long_name: str) -> xr.DataArray:
        values = np.array([median(times) for times in seconds.values()]).reshape(len(candidates), 2)
        return xr.DataArray(values, dims=tuple(index), attrs={"long_name": long_name, "units": "s"})

    times = {"seconds": table(wall, "wall time"), "cpu_seconds": table(cpu, "processor time of all threads")}
    return xr.Dataset(
        {
            **times,
            "rate": (scores / times["seconds"]).assign_attrs(long_name="scores by wall time", units="1/s"),
            "cpu_rate": (scores / times["cpu_seconds"]).assign_attrs(long_name="scores by processor time", units="1/s"),
        },
        coords=index,
        attrs={"samples": samples, "contexts": 2, "steps": steps, "tokens": tokens, "channels": channels},
    )


def synthetic_features(*, samples: int, steps: int, tokens: int, channels: int, seed: int = 0) -> xr.Dataset:
    """`probe` and `residual` of a recording in memory, independent normal numbers, float32."""
    rng = np.random.default_rng(seed)
    shape = (samples, 2, steps, tokens, channels)
    dims = ("sample", "context", "step", "token", "channel")
    attrs = {"long_name": "synthetic feature", "units": "1"}
    return xr.Dataset(
        {name: (dims, rng.standard_normal(shape, dtype=np.float32), attrs) for name in ("probe", "residual")}
    )
