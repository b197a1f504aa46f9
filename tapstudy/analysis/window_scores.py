"""Losses of any linear predictors at the skip steps of a window, from one pass over its features.

The vectors are [A_0, A_1 - A_0, .., A_0 - F_1, .., A_0 - F_S], with A_j the anchors and F_s the actual features. The
error of a prediction of F_s is made of F_s, the differences of the anchors and the one of step s, so the products of
these suffice for all predictors and distances. Differences of features close to each other are exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from importlib import import_module
from itertools import combinations_with_replacement, product
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from tapstudy.analysis.teacher_forced import Array, Trajectories, Windows
from tapstudy.core.losses import Distance, Workspace, losses_from_products
from tapstudy.core.products import MUCH_SMALLER, chunk_size
from tapstudy.core.scoring import predictor_losses


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
        name: str = "",
    ) -> Tensor:
        """Losses at some steps after one another, of predictors that may differ from step to step.

        Args:
            weights: (steps, predictor, J).
            start: the first of these steps, in 0..S-1.
            dtype: of the result.
            name: of the memory in the workspace that takes the result.

        Returns:
            (steps, predictor, B * W * token), valid until the next call with the same name.
        """
        if distance == "l1":
            return torch.stack([self._absolute(rows, start + i) for i, rows in enumerate(weights)]).to(dtype)
        products = self.products[start : start + len(weights)]  # (s, K, T)
        out = self.workspace.take(products, (*weights.shape[:-1], products.shape[-1]), dtype, name=f"losses {name}")
        return losses_from_products(products, weights, distance=distance, out=out, workspace=self.workspace)

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
        gram, square = self._gram()  # (J, J + S, T), (S, T)
        count = len(gram)
        newest, steps = gram[0, 0], gram[:, count:]  # |A_0|^2, (T,), and of A_0 - F_s with the anchors, (J, S, T)
        products = gram.new_empty(len(square), (count + 1) * (count + 2) // 2, gram.shape[-1])
        torch.add(newest, square, out=products[:, 0]).sub_(steps[0], alpha=2)  # |F_s|^2
        if (products[:, 0] < MUCH_SMALLER * newest).any():
            products[:, 0] = self._norms()
        torch.sub(gram[0, 1:count], steps[1:].transpose(0, 1), out=products[:, 1:count])  # <A_j - A_0, F_s>
        torch.sub(steps[0], square, out=products[:, count])  # <A_0 - F_s, F_s>
        for k, (i, j) in enumerate(combinations_with_replacement(range(1, count + 1), 2), start=count + 1):
            products[:, k] = gram[i, j] if j < count else steps[i] if i < count else square
        return products

    def _gram(self) -> tuple[Tensor, Tensor]:
        """Of [A_0, A_1 - A_0, ..] with these and every A_0 - F_s, (J, J + S, T), and |A_0 - F_s|^2, (S, T)."""
        like = self.trajectories.values[0]
        _, tokens, width = like.shape
        windows, steps, count = len(self.windows.steps), len(self.windows.steps[0]), len(self.windows.anchors[0])
        rows = self.trajectories.count * windows * tokens
        gram = self.workspace.take(like, (rows, count, count + steps), torch.float64, name="gram")
        square = torch.empty(steps, rows, dtype=torch.float64)
        size = min(tokens, chunk_size(count + steps, width))
        buffer = self.workspace.take(like, (count + steps, size, width), torch.float64, name="basis")
        for row in range(0, rows, tokens):
            sample, window = divmod(row // tokens, windows)
            stored = [self._stored(sample, step) for step in self.windows.anchors[window]]  # (token, D) each
            actual = self.trajectories.between(sample, self.windows.steps[window])  # (S, token, D)
            for start in range(0, tokens, size):
                part = slice(start, min(start + size, tokens))
                basis = buffer[:, : part.stop - start]  # (J + S, chunk, D)
                for vector, anchor in zip(basis, stored, strict=False):
                    vector.copy_(anchor[part])
                basis[count:].copy_(actual[:, part])
                basis[1:count] -= basis[0]
                torch.sub(basis[0], basis[count:], out=basis[count:])
                vectors = basis.transpose(0, 1)  # (chunk, J + S, D)
                where = slice(row + start, row + part.stop)
                torch.bmm(vectors[:, :count], vectors.mT, out=gram[where])
                torch.linalg.vector_norm(basis[count:], dim=-1, out=square[:, where])
        return gram.flatten(1).T.contiguous().unflatten(0, (count, -1)), square.square_()

    def _norms(self) -> Tensor:
        """|F_s|^2, (S, T)."""
        every = product(range(self.trajectories.count), self.windows.steps)
        lengths = [torch.linalg.vector_norm(self.trajectories.between(sample, steps), dim=-1, dtype=torch.float64)
                   for sample, steps in every]  # fmt: skip
        return torch.cat(lengths, dim=1).square_()

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
