"""Count what TAP asks of a GPU, as a table: `python -m tests.gpu_free.count`."""

from __future__ import annotations

import tempfile

import torch

import tapstudy
from tapstudy import TAPConfig
from tapstudy.bench.speed.real_sizes import REAL_SIZES
from tests.gpu_free.fake_cuda import fake_gpus
from tests.gpu_free.models import MODELS, real

COLUMNS = (
    "model", "launches of a skip step", "of the model", "moved by TAP, GB", "in float64, GB", "history, GB",
    "peak of a plain pass, GB", "of a full pass, GB", "of a skip step, GB",
)  # fmt: skip


def counts(name: str, folder: str) -> tuple[str, ...]:
    """Return a row of `COLUMNS`; peaks are above the weights."""
    with fake_gpus(folder) as trace, torch.no_grad():
        loop = real(trace, name)
        weights = trace.live
        trace.phase()
        loop(1)
        plain = trace.phase().peak - weights
        with tapstudy.apply_tap(loop, TAPConfig(interval=4)) as handle:
            trace.watch(handle)
            loop(7)
            history = handle.summary().contexts[0].cache_bytes
        skip = trace.of("skip")[1]  # the first one also multiplies the anchors with each other
        own = sum(skip.own.values())
        peaks = (max(tally.peak for tally in trace.of(kind)) - weights for kind in ("full", "skip"))
        gigabytes = (skip.own_moved, skip.own_wide, history, plain, *peaks)
        launches = str(own), str(sum(skip.launches.values()) - own)
        return REAL_SIZES[name].label, *launches, *(f"{value / 1e9:.2f}" for value in gigabytes)


def main() -> None:
    """Print the table."""
    print("|", " | ".join(COLUMNS), "|")
    print("|", " | ".join("---" for _ in COLUMNS), "|")
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            print("|", " | ".join(counts(name, folder)), "|")


if __name__ == "__main__":
    main()
