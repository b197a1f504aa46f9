"""Losses of any linear predictors at the skip steps of a window, from one pass over its features.

The products of `core.scoring`, made once, suffice for all predictors and distances.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from importlib import import_module
from itertools import product
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tapstudy.analysis.teacher_forced import Array, Trajectories, Windows
from tapstudy.core.scoring import (
    Distance,
    anchor_products,
    losses_of,
    predictor_losses,
    scores_from_products,
    step_products,
)


@cache
def compiled_loops() -> ModuleType | None:
    """`tapstudy.analysis.fused_scores`, or None where numba is not installed."""
    try:
        return import_module("tapstudy.analysis.fused_scores")
    except ImportError:
        return None


class WindowScores:
    """Scores predictors in alike windows of trajectories.

    Args:
        trajectories: of B samples.
        windows: W windows of S steps with J anchors.
        history_dtype: of the stored anchors; None: as recorded.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        windows: Windows,
        *,
        history_dtype: torch.dtype | None = None,
    ) -> None:
        self.trajectories, self.windows = trajectories, windows
        self.history_dtype = history_dtype

    @property
    def rows(self) -> int:
        """Windows of all samples, B * W."""
        return self.trajectories.count * len(self.windows.steps)

    @property
    def tokens(self) -> int:
        """Of all rows, T = B * W * token."""
        return self.rows * self.trajectories.values[0].shape[1]

    def losses(
        self,
        weights: Tensor,
        distance: Distance,
        *,
        start: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Losses at some steps after one another, of predictors that may differ from step to step.

        Args:
            weights: (steps, predictor, J).
            start: the first of these steps, in 0..S-1.
            dtype: of the result.

        Returns:
            (steps, predictor, B * W * token).
        """
        if distance == "l1":
            return torch.stack([self._absolute(rows, start + i) for i, rows in enumerate(weights)]).to(dtype)
        products = self.products[start : start + len(weights)]  # (s, K, T)
        return losses_of(scores_from_products(products, weights, distance=distance, dtype=dtype), distance=distance)

    @cached_property
    def products(self) -> Tensor:
        """Of [F_s, A_1 - A_0, .., A_0 - F_s] for every step, in pairs, (S, K, T), float64; T = B * W * token."""
        loops = compiled_loops()
        if loops is None:
            return self._products()
        like = self.trajectories.values[0]
        count, tokens = len(self.windows.anchors[0]), like.shape[1]
        every = [*product(range(self.trajectories.count), zip(self.windows.anchors, self.windows.steps, strict=True))]
        products = torch.empty(
            len(self.windows.steps[0]), (count + 1) * (count + 2) // 2, len(every) * tokens, dtype=torch.float64
        )
        for row, (sample, (anchors, steps)) in enumerate(every):
            stored, places = self._stored_at(sample, anchors)
            actual = self.trajectories.between(sample, steps)
            loops.products(stored.numpy(), places, actual.numpy(), row * tokens, products.numpy())
        return products

    def _products(self) -> Tensor:
        """The same without numba."""
        every = product(range(self.trajectories.count), zip(self.windows.anchors, self.windows.steps, strict=True))
        rows = []
        for sample, (anchors, steps) in every:
            stored = [self._stored(sample, step) for step in anchors]  # (token, D) each
            known, actual = anchor_products(stored), self.trajectories.between(sample, steps)  # (S, token, D)
            rows.append(torch.stack([step_products(stored, features, known) for features in actual]))
        return torch.cat(rows, dim=-1)

    def _stored(self, sample: int, step: int) -> Tensor:
        anchor = self.trajectories.at(sample, step)
        return anchor if self.history_dtype is None else anchor.to(self.history_dtype)

    def _stored_at(self, sample: int, steps: Sequence[int]) -> tuple[Tensor, Array]:
        """A tensor that holds stored anchors, (any, token, D), and where they are in it."""
        values = self.trajectories.values[sample]
        if self.history_dtype is None or torch.promote_types(self.history_dtype, values.dtype) == self.history_dtype:
            return values, np.array([self.trajectories.position[step] for step in steps])
        return torch.stack([self._stored(sample, step) for step in steps]).to(values.dtype), np.arange(len(steps))

    def _absolute(self, weights: Tensor, step: int) -> Tensor:
        """At one step of the windows, (predictor, J) -> (predictor, T)."""
        at = self.trajectories.at
        every = [*product(range(self.trajectories.count), zip(self.windows.anchors, self.windows.steps, strict=True))]
        anchors = [
            torch.stack([self._stored(sample, anchors[j]) for sample, (anchors, _) in every])
            for j in range(weights.shape[-1])
        ]  # (B * W, token, D) each
        actual = torch.stack([at(sample, steps[step]) for sample, (_, steps) in every])
        return predictor_losses(anchors, actual, weights, distance="l1").flatten(0, 1).T
