"""Losses of any linear predictors at the skip steps of a window, from one pass over its features.

The vectors are [A_0, A_1 - A_0, .., F_1 - A_0, .., F_S - A_0], with A_j the anchors and F_s the actual features. F_s,
and the error of every prediction of it, are made of A_0, the differences of the anchors and the one of step s, so the
products of these suffice for all predictors and distances. Differences of features close to each other are exact.
"""

from __future__ import annotations

from functools import cached_property
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from tapstudy.analysis.teacher_forced import Trajectories, Windows
from tapstudy.core.scoring import (
    CHUNK_BYTES,
    Distance,
    Workspace,
    losses_from_products,
    predictor_losses,
    quadratic_forms,
)


class WindowScores:
    """Scores predictors in alike windows of trajectories.

    Args:
        trajectories: of B samples.
        windows: W windows of S steps with J anchors.
        workspace: memory to work in; may be shared with others.
        history_dtype: of the stored anchors; None: as recorded.
    """

    def __init__(
        self,
        trajectories: Trajectories,
        windows: Windows,
        workspace: Workspace,
        *,
        history_dtype: torch.dtype | None = None,
    ) -> None:
        self.trajectories, self.windows, self.workspace = trajectories, windows, workspace
        self.history_dtype = history_dtype
        count = len(windows.anchors[0])
        pairs = [*combinations_with_replacement(range(count), 2), *((j, count) for j in range(count + 1))]
        self.pairs = torch.tensor(pairs).T  # (2, K)

    def losses(
        self,
        weights: Tensor,
        distance: Distance,
        *,
        start: int = 0,
        dtype: torch.dtype = torch.float64,
        name: str = "",
    ) -> Tensor:
        """Losses at some steps after one another, of predictors that may differ from step to step.

        Args:
            weights: (steps, predictor, J).
            start: the first of these steps, in 0..S-1.
            dtype: of the result; the distances are found in float64.
            name: of the memory in the workspace that takes the result.

        Returns:
            (steps, predictor, B * W * token), valid until the next call with the same name.
        """
        if distance == "l1":
            return torch.stack([self._absolute(rows, start + i) for i, rows in enumerate(weights)]).to(dtype)
        products, norm = (values[start : start + len(weights)] for values in self._products)
        minus = -torch.ones_like(weights[..., :1])  # of F_s - A_0
        error = torch.cat([weights.sum(dim=-1, keepdim=True) - 1, weights[..., 1:], minus], dim=-1)  # (s, P, J + 1)
        actual = torch.zeros(error.shape[-1])
        actual[0] = actual[-1] = 1
        shape = (*error.shape[:-1], products.shape[-1])
        return losses_from_products(
            products, norm, quadratic_forms(error, actual, self.pairs), distance=distance,
            out=self.workspace.take(products, shape, dtype, name=f"losses {name}"), workspace=self.workspace,
        )  # fmt: skip

    @cached_property
    def _products(self) -> tuple[Tensor, Tensor]:
        """Products for every step, (S, K, T), and |F_s|^2, (S, T); T = B * W * token."""
        like = self.trajectories.values[0]
        _, tokens, width = like.shape
        windows, steps, anchors = len(self.windows.steps), len(self.windows.steps[0]), len(self.windows.anchors[0])
        rows = self.trajectories.count * windows * tokens
        products = torch.empty(steps, self.pairs.shape[1], rows, dtype=torch.float64)
        norm = torch.empty(steps, rows, dtype=torch.float64)
        size = max(1, CHUNK_BYTES // (8 * width * (anchors + steps)))
        for row in range(0, rows, tokens):
            sample, window = divmod(row // tokens, windows)
            stored = [self._stored(sample, step) for step in self.windows.anchors[window]]  # (token, D) each
            actual = self.trajectories.between(sample, self.windows.steps[window])  # (S, token, D)
            for start in range(0, tokens, size):
                part = slice(start, min(start + size, tokens))
                shape = (anchors + steps, part.stop - start, width)
                basis = self.workspace.take(like, shape, torch.float64, name="basis")
                for vector, anchor in zip(basis, stored, strict=False):
                    vector.copy_(anchor[part])
                basis[anchors:].copy_(actual[:, part])
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

    def _stored(self, sample: int, step: int) -> Tensor:
        anchor = self.trajectories.at(sample, step)
        return anchor if self.history_dtype is None else anchor.to(self.history_dtype)

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
