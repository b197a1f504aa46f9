"""A recorded trajectory: its full steps, the windows between them, and its features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import dask.array as da
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from tapstudy.policies.config import TAPConfig

Array = NDArray[Any]

# Token rows of alike windows that are scored together: enough that the calls of torch do not show.
ROWS = 2048


@dataclass(frozen=True)
class Windows:
    """Runs of skip steps between full steps that see their anchors at the same distances.

    So all of them share the weights of every predictor.

    Attributes:
        steps: the S skip steps of each of the W windows, (W, S).
        anchors: the J anchors of each, newest first, (W, J).
    """

    steps: tuple[tuple[int, ...], ...]
    anchors: tuple[tuple[int, ...], ...]


def full_steps_of(config: TAPConfig, num_steps: int) -> tuple[int, ...]:
    """The full steps of a configuration, in a trajectory of `num_steps` steps."""
    return config.schedule.steps(num_steps)


def anchors_at(step: int, full: Sequence[int], count: int) -> tuple[int, ...]:
    """The last `count` full steps before `step`, newest first."""
    return tuple(anchor for anchor in reversed(full) if anchor < step)[:count]


def windows_of(steps: Sequence[int], full: Sequence[int], num_anchors: int, *, size: int) -> list[Windows]:
    """The windows that the skip steps among `steps` form, those alike together, at most `size` of them."""
    windows: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for step in steps:
        if step not in full:
            windows[anchors_at(step, full, num_anchors)].append(step)
    alike: dict[tuple[tuple[int, ...], ...], list[tuple[int, ...]]] = defaultdict(list)
    for anchors, found in windows.items():
        seen = tuple(tuple(step - anchors[0] for step in some) for some in (anchors, found))
        alike[seen].append(anchors)
    return [
        Windows(tuple(tuple(anchors[0] + after for after in ahead) for anchors in part), tuple(part))
        for (_, ahead), every in alike.items()
        for part in (every[i : i + size] for i in range(0, len(every), size))
    ]


def held_steps(steps: range, full: Sequence[int], num_anchors: int) -> list[int]:
    """The steps that are needed to score `steps`: themselves and the anchors before."""
    return sorted({*anchors_at(steps.start, full, num_anchors), *steps})


def boxed(features: xr.DataArray) -> xr.DataArray:
    """Lazy trajectories, each as one object: (..., step, token, channel) -> (...), of arrays (step, token, channel).

    Dask copies what it hands to a function that takes whole axes, even if they are in one chunk; this it does not copy.
    """
    leading = features.dims[:-3]
    axes = tuple(range(features.ndim))
    boxes = da.blockwise(
        _box, axes[:-3], features.data, axes, dtype=object, meta=np.empty((0,) * len(leading), object)
    )  # fmt: skip
    return xr.DataArray(boxes, dims=leading, coords={dim: features[dim] for dim in leading if dim in features.coords})


def _box(blocks: Any) -> Array:
    while isinstance(blocks, list):  # one chunk along the axes that are taken whole
        (blocks,) = blocks
    boxes = np.empty(blocks.shape[:-3], object)
    for index in np.ndindex(boxes.shape):
        boxes[index] = blocks[index]
    return boxes


class Trajectories:
    """Features of one block of the model at some steps, of B samples.

    Args:
        values: (..., step, token, channel), or objects (...) as of `boxed`; float16 is raised to float32.
        steps: which steps they are.
    """

    def __init__(self, values: Array, steps: Sequence[int]) -> None:
        each = values.ravel() if values.dtype == object else values.reshape(-1, *values.shape[-3:])
        self.values = [torch.from_numpy(_float32(one)) for one in each]  # (T, N, D) each
        self.position = {step: position for position, step in enumerate(steps)}

    @property
    def count(self) -> int:
        """How many, B."""
        return len(self.values)

    @property
    def windows_at_once(self) -> int:
        """How many alike windows to score together."""
        return max(1, ROWS // (self.count * self.values[0].shape[1]))

    def at(self, sample: int, step: int) -> Tensor:
        """(token, channel), without a copy."""
        return self.values[sample][self.position[step]]

    def between(self, sample: int, steps: Sequence[int]) -> Tensor:
        """At steps one after another, (S, token, channel), without a copy."""
        return self.values[sample][self.position[steps[0]] : self.position[steps[-1]] + 1]


def _float32(values: Array) -> Array:
    return np.require(values, np.result_type(values.dtype, np.float32), ["C", "W"])


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
