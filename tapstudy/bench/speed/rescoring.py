"""How fast recorded features are rescored."""

from __future__ import annotations

import time

import numpy as np
import xarray as xr

from tapstudy.analysis.rescoring import rescore
from tapstudy.policies.config import TAPConfig

# number of candidates -> shifts of the orders 0, 1 and 2
FAMILIES: dict[int, tuple[float, ...]] = {15: (0, 1, 2, 3, 4), 150: tuple(i / 10 for i in range(50))}
OUTPUTS = ("scores", "selected")


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
