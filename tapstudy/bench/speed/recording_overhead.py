"""What recording costs on top of sampling."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tapstudy.recording.record import record
from tapstudy.recording.schema import DEFAULT_FIELDS


def recording_overhead(
    pipe: Any, *, labels: Sequence[int], steps: int = 50, repeats: int = 3
) -> dict[str, tuple[float, float]]:
    """Median seconds of sampling a batch, and of recording it, with the share that recording adds.

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
