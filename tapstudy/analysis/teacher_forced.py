"""Losses along a recorded trajectory: which skip steps go together, and how they are scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapstudy.core.schedule import full_steps
from tapstudy.core.scoring import Distance, predictor_losses
from tapstudy.policies.config import TAPConfig

Array = NDArray[Any]

# Token rows scored in one call: enough that the dozen torch calls of a score do not show, few enough that the losses
# of a hundred candidates stay in a processor's cache.
ROWS = 2048


@dataclass(frozen=True)
class StepBatch:
    """Skip steps that see their anchors at the same distances, and so share the weights of every predictor.

    Attributes:
        steps: the S steps.
        anchors: for each anchor, newest first, where it is for each of the steps, (J, S).
    """

    steps: tuple[int, ...]
    anchors: tuple[tuple[int, ...], ...]

    @property
    def newest_first(self) -> tuple[int, ...]:
        """The anchors of the first step."""
        return tuple(steps[0] for steps in self.anchors)


def full_steps_of(config: TAPConfig, num_steps: int) -> tuple[int, ...]:
    """The full steps of a configuration, in a trajectory of `num_steps` steps."""
    if config.full_steps is None:
        return full_steps(
            num_steps,
            interval=config.interval,
            warmup_steps=config.warmup_steps,
            cooldown_steps=config.cooldown_steps,
        )
    last = num_steps - config.cooldown_steps
    return tuple(step for step in range(num_steps) if step in config.full_steps or step >= last)


def anchors_at(step: int, full: Sequence[int], count: int) -> tuple[int, ...]:
    """The last `count` full steps before `step`, newest first."""
    return tuple(anchor for anchor in reversed(full) if anchor < step)[:count]


def step_batches(steps: Sequence[int], full: Sequence[int], num_anchors: int, *, size: int) -> list[StepBatch]:
    """The skip steps among `steps`, those at the same distances from their anchors together, at most `size` of them."""
    alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for step in steps:
        if step not in full:
            alike[tuple(step - anchor for anchor in anchors_at(step, full, num_anchors))].append(step)
    return [
        StepBatch(tuple(part), tuple(tuple(step - distance for step in part) for distance in distances))
        for distances, found in alike.items()
        for part in (found[i : i + size] for i in range(0, len(found), size))
    ]


def held_steps(steps: range, full: Sequence[int], num_anchors: int) -> list[int]:
    """The steps that are needed to score `steps`: themselves and the anchors before."""
    return sorted({*anchors_at(steps.start, full, num_anchors), *steps})


class Trajectory:
    """Features of one block at some steps.

    Args:
        values: (..., step, token, channel); float16 is raised to float32.
        steps: which steps they are.
    """

    def __init__(self, values: Array, steps: Sequence[int]) -> None:
        dtype = np.result_type(values.dtype, np.float32)
        values = np.require(values, dtype, ["C", "W"]).reshape(-1, *values.shape[-3:])
        self.values = torch.from_numpy(values)  # (B, T, N, D)
        self.position = {step: position for position, step in enumerate(steps)}

    @property
    def count(self) -> int:
        """Of trajectories, B."""
        return len(self.values)

    @property
    def batch_size(self) -> int:
        """How many steps to score at once."""
        samples, _, tokens, _ = self.values.shape
        return max(1, ROWS // (samples * tokens))

    def index(self, steps: Sequence[int]) -> Tensor:
        """Where the steps are, (S,)."""
        return torch.tensor([self.position[step] for step in steps])

    def at(self, steps: Sequence[int]) -> Tensor:
        """(B * S, token, channel); of a single step without a copy."""
        if len(steps) == 1:
            return self.values[:, self.position[steps[0]]]
        return self.values.index_select(1, self.index(steps)).flatten(0, 1)

    def losses(
        self, batch: StepBatch, weights: Tensor, distance: Distance, *, history_dtype: torch.dtype | None = None
    ) -> Tensor:
        """Of every prediction of `weights` (predictor, J), (B * S, token, predictor), float64."""
        anchors = [self.at(steps) for steps in batch.anchors]
        if history_dtype is not None:
            anchors = [anchor.to(history_dtype) for anchor in anchors]
        return predictor_losses(anchors, self.at(batch.steps), weights, distance=distance)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Dask's threads already use every core, and a score's tensors are too small to be shared out among threads.

    Measured on two cores, 196 tokens of width 192: two dask threads with one torch thread each take 0.25 s of processor
    time, with two torch threads each 0.32 s; one dask thread with two torch threads 0.31 s, and the longest wall time.
    Torch keeps the number per thread (and takes the last one set as the default of threads to come), so the caller's
    models keep theirs.
    """
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)
