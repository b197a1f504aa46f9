"""Score predictors along a recorded trajectory: from exact features at its full steps, against exact ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapstudy.core.products import anchor_products, scores_from_products, step_products
from tapstudy.core.scoring import Distance, least, losses_of, predictor_losses, select
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Candidates, Family, candidates

Array = NDArray[Any]
Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Job:
    """Name what is scored: settings, a family, the full steps, the token grid where regions need it."""

    config: TAPConfig
    family: Family
    full: tuple[int, ...]
    grid: Grid | None = None


class Scores(NamedTuple):
    """Hold what a skip step comes to: the distinct predictors, their losses (token, distinct), choices (token,)."""

    found: Candidates
    proxy: Tensor
    error: Tensor
    choice: Tensor
    best: Tensor


class Features:
    """Hold one variable of one trajectory, and the products of its vectors, which serve all predictors and distances.

    Args:
        values: (step, token, channel); float16 is raised to float32.
        steps: which steps they are.
        stored: dtype of the stored anchors; None: as recorded.
    """

    def __init__(self, values: Array, steps: Sequence[int], stored: torch.dtype | None = None) -> None:
        wide = np.result_type(values.dtype, np.float32)
        self.values = torch.from_numpy(np.require(values, wide, ["C", "W"]))
        self.position = {step: position for position, step in enumerate(steps)}
        self.stored = stored
        self._between: dict[tuple[int, ...], Tensor] = {}
        self._products: dict[tuple[int, ...], Tensor] = {}

    def losses(self, anchors: tuple[int, ...], step: int, weights: Tensor, distance: Distance) -> Tensor:
        """Measure predictors (predictor, J) at a step from its anchors, (token, predictor), float32."""
        if distance == "l1":
            past, now = self._vectors(anchors, step)
            return predictor_losses(past, now, weights, distance="l1")[0].float()
        key = (*anchors, step)
        if key not in self._products:
            past, now = self._vectors(anchors, step)
            if anchors not in self._between:
                self._between[anchors] = anchor_products(past)
            self._products[key] = step_products(past, now, self._between[anchors])  # (K, token)
        return losses_of(scores_from_products(self._products[key], weights, distance=distance), distance=distance).T

    def _vectors(self, anchors: tuple[int, ...], step: int) -> tuple[list[Tensor], Tensor]:
        """Take the stored anchors and the actual features, (1, token, channel) each."""
        past, now = ([self.values[self.position[one]][None] for one in some] for some in (anchors, [step]))
        return [one if self.stored is None else one.to(self.stored) for one in past], now[0]


def scored(probe: Features, residual: Features, job: Job, steps: Sequence[int]) -> Iterator[tuple[int, Scores]]:
    """Score the skip steps among `steps`: (position, scores)."""
    config = job.config
    for position, step in enumerate(steps):
        if step in job.full:
            continue
        anchors = anchors_at(step, job.full, job.family.num_anchors)
        found = candidates(job.family, anchors, step)
        proxy = probe.losses(anchors, step, found.weights, config.distance)
        error = residual.losses(anchors, step, found.weights, "l2")
        choice = select(
            proxy[None], granularity=config.granularity, grid=job.grid, region_size=config.region_size
        )[0]  # fmt: skip
        yield position, Scores(found, proxy, error, choice, least(error.mT)[1])


def anchors_at(step: int, full: Sequence[int], count: int) -> tuple[int, ...]:
    """List the last `count` full steps before `step`, newest first."""
    return tuple(anchor for anchor in reversed(full) if anchor < step)[:count]


def held_steps(steps: range, full: Sequence[int], num_anchors: int) -> list[int]:
    """List the steps that are needed to score `steps`: themselves and the anchors before."""
    return sorted({*anchors_at(steps.start, full, num_anchors), *steps})


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Keep torch to one thread in a thread of dask, which already uses every core; the caller's number comes back."""
    before = torch.get_num_threads()
    if before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if before > 1:
            torch.set_num_threads(before)
