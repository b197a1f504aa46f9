"""Define what a predictor offers that no row of weights can stand for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from tapstudy.core.weights import Row
from tapstudy.predictors.family import Label

Grid = tuple[int, int, int]

# Gram matrices are taken over so many float64 values at a time.
CHUNK_VALUES = 1 << 22


class NonlinearPredictor(Protocol):
    """Predict with weights that depend on the values themselves, or on where a token lies. A frozen dataclass, say.

    It is applied to the probe's anchors and to the residual's, each for itself.
    """

    @property
    def label(self) -> Label: ...

    @property
    def num_anchors(self) -> int:
        """How many anchors it can use; it is given at most so many."""
        ...

    @property
    def waits(self) -> int:
        """How often, at most, a prediction makes the host wait for the device: eigenvalues do, once each."""
        ...

    def predict(
        self, anchors: Sequence[int], values: Sequence[Tensor], step: int, *, grid: Grid | None = None
    ) -> Tensor:
        """Predict the values at `step`, (batch, token, channel), float32 or better.

        Args:
            anchors: step indices, newest first, at least one.
            values: at the anchors, (batch, token, channel) each.
            grid: frames, rows and columns of the tokens, where known.
        """
        ...


def combine_values(values: Sequence[Tensor], weights: Row | Tensor) -> Tensor:
    """Compute sum_j w_j F_j, (batch, token, channel), float32 or better.

    Args:
        values: F_j, (batch, token, channel) each.
        weights: one number per anchor, or one per token and anchor, (batch, token, anchor).
    """
    dtype = torch.promote_types(values[0].dtype, torch.float32)
    total = torch.zeros_like(values[0], dtype=dtype)  # (B, N, D)
    for j, value in enumerate(values):
        if isinstance(weights, Tensor):
            total.addcmul_(value.to(dtype), weights[..., j : j + 1].to(dtype))
        elif weights[j]:
            total.add_(value, alpha=weights[j])
    return total


def token_gram(values: Sequence[Tensor]) -> Tensor:
    """Multiply the anchors of every token with each other, (batch, token, anchor, anchor), float64."""
    rows = [value.flatten(0, -2) for value in values]  # (T, D) each, T = B * N
    tokens, width = rows[0].shape
    size = max(1, CHUNK_VALUES // (len(rows) * width))
    parts = []
    for start in range(0, tokens, size):
        vectors = torch.stack([row[start : start + size].double() for row in rows], dim=1)  # (chunk, J, D)
        parts.append(vectors @ vectors.mT)
    return torch.cat(parts).unflatten(0, values[0].shape[:-1])
