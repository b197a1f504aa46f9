"""Losses of any linear predictors at the skip steps of a window, from one pass over its features.

The vectors are [A_0, A_1 - A_0, .., F_1 - A_0, .., F_S - A_0], with A_j the anchors and F_s the actual features. F_s, and
the error of every prediction of it, are made of A_0, the differences of the anchors and the one of step s, so the
products of these suffice, for all predictors, distances and steps. Differences of float32 numbers are exact in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations_with_replacement

import torch
from torch import Tensor

from tapstudy.analysis.teacher_forced import Trajectory, Windows
from tapstudy.core.scoring import CHUNK_BYTES, Distance, losses_from_products, predictor_losses, quadratic_forms


class WindowScores:
    """Scores predictors in alike windows of trajectories.

    One object at a time per trajectory and `history_dtype`: the next one takes over the memory.

    Args:
        trajectory: of B samples.
        windows: W windows of S steps with J anchors.
        history_dtype: of the stored anchors; None: as recorded.
    """

    def __init__(self, trajectory: Trajectory, windows: Windows, history_dtype: torch.dtype | None = None) -> None:
        self.trajectory, self.windows, self.history_dtype = trajectory, windows, history_dtype
        count = len(windows.anchors[0])
        pairs = [*combinations_with_replacement(range(count), 2), *((j, count) for j in range(count + 1))]
        self.pairs = torch.tensor(pairs).T  # (2, K)
        self._products: tuple[Tensor, Tensor] | None = None

    def losses(
        self, weights: Tensor, distance: Distance, *, start: int = 0, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Losses at some steps after one another, of predictors that may differ from step to step.

        Args:
            weights: (steps, predictor, J).
            start: the first of these steps, in 0..S-1.
            dtype: of the result; the distances are found in float64.

        Returns:
            (steps, predictor, B * W * token), valid until the next call with this dtype.
        """
        if distance == "l1":
            return torch.stack([self._absolute(rows, start + i) for i, rows in enumerate(weights)]).to(dtype)
        if self._products is None:
            self._products = self._multiply()
        products, norm = (values[start : start + len(weights)] for values in self._products)
        minus = -torch.ones_like(weights[..., :1])  # of F_s - A_0
        error = torch.cat([weights.sum(dim=-1, keepdim=True) - 1, weights[..., 1:], minus], dim=-1)  # (s, P, J + 1)
        actual = torch.zeros(error.shape[-1])
        actual[0] = actual[-1] = 1
        workspace = self.trajectory.workspace
        shape = (*error.shape[:-1], products.shape[-1])
        return losses_from_products(
            products, norm, quadratic_forms(error, actual, self.pairs), distance=distance,
            out=workspace.take(products, shape, dtype, name=f"{dtype}"), workspace=workspace,
        )  # fmt: skip

    def _multiply(self) -> tuple[Tensor, Tensor]:
        """Products for every step, (S, K, T), and |F_s|^2, (S, T); T = B * W * token."""
        samples, _, tokens, width = self.trajectory.values.shape
        (windows, steps), anchors = torch.tensor(self.windows.steps).shape, len(self.windows.anchors[0])
        take, like = self.trajectory.workspace.take, self.trajectory.values
        rows, name = samples * windows * tokens, f"{self.history_dtype}"
        products = take(like, (steps, self.pairs.shape[1], rows), torch.float64, name=f"products {name}")
        norm = take(like, (steps, rows), torch.float64, name=f"norm {name}")
        size = max(1, CHUNK_BYTES // (8 * width * (anchors + steps)))
        for row in range(0, rows, tokens):
            sample, window = divmod(row // tokens, windows)
            features = [
                *(self._stored(step)[sample] for step in self.windows.anchors[window]),
                *(self.trajectory.at(step)[sample] for step in self.windows.steps[window]),
            ]  # (token, D) each
            for start in range(0, tokens, size):
                part = slice(start, min(start + size, tokens))
                basis = take(like, (len(features), part.stop - start, width), torch.float64, name="basis")
                for vector, feature in zip(basis, features, strict=True):
                    vector.copy_(feature[part])
                where = slice(row + part.start, row + part.stop)
                self._of_chunk(basis, products[..., where], norm[:, where])
        return products, norm

    def _of_chunk(self, basis: Tensor, products: Tensor, norm: Tensor) -> None:
        """(J + S, chunk, D) -> (S, K, chunk) and (S, chunk)."""
        count = len(basis) - len(norm)  # J
        norm.copy_(torch.linalg.vector_norm(basis[count:], dim=-1)).square_()
        basis[1:] -= basis[0]
        vectors = basis.transpose(0, 1)  # (chunk, J + S, D)
        gram = torch.bmm(vectors[:, :count], vectors.mT).permute(2, 1, 0)  # (J + S, J, chunk)
        shared = products.shape[1] - count - 1  # pairs of anchors
        products[:, :shared] = gram[self.pairs[0, :shared], self.pairs[1, :shared]]
        products[:, shared:-1] = gram[count:]
        products[:, -1] = torch.linalg.vector_norm(basis[count:], dim=-1).square_()

    def _stored(self, step: int) -> Tensor:
        return self.trajectory.at(step) if self.history_dtype is None else self.trajectory.at(step).to(self.history_dtype)

    def _absolute(self, weights: Tensor, step: int) -> Tensor:
        """(P, T)"""
        at = self.trajectory.at
        anchors = [torch.stack([at(anchors[j]) for anchors in self.windows.anchors], dim=1).flatten(0, 1)
                   for j in range(weights.shape[-1])]  # fmt: skip
        actual = torch.stack([at(steps[step]) for steps in self.windows.steps], dim=1).flatten(0, 1)  # (B * W, N, D)
        return predictor_losses(anchors, actual, weights, distance="l1").flatten(0, 1).T
