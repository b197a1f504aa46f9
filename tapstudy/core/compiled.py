"""Scoring, choice and assembly of a skip step as one compiled graph.

On accelerators this is a few launches in place of some tens, and no intermediate features go to memory. The first
calls compile, which takes seconds; later ones do not, whatever the weights: these are inputs of the graph.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from threading import Lock
from typing import Any, Self

import torch
from torch import Tensor

from tapstudy.core.losses import Distance, losses_from_products
from tapstudy.core.scoring import Granularity, assemble, select

Step = tuple[Tensor, Tensor, Tensor]


def whole_step(
    probes: Sequence[Tensor],
    probe: Tensor,
    residuals: Sequence[Tensor],
    *,
    weights: Tensor,
    distance: Distance = "cosine",
    granularity: Granularity = "token",
) -> Step:
    """What a skip step predicts, chooses by and chooses, in operations that make one graph.

    Args:
        probes: those of J anchors, (batch, token, channel) each.
        probe: the actual one.
        residuals: those of the anchors.
        weights: (predictor, J), float64, on their device.
        distance: not l1.
        granularity: not region.

    Returns:
        Residual (batch, token, channel), choice (batch, token), float32 losses (batch, token, predictor).
    """
    wide = torch.float32 if probe.device.type == "mps" else torch.float64
    actual, newest = probe.to(wide), probes[0].to(wide)
    vectors = [actual, *(other.to(wide) - newest for other in probes[1:]), newest - actual]
    pairs = [(i, j) for i in range(len(vectors)) for j in range(i, len(vectors))]
    products = torch.stack([(vectors[i] * vectors[j]).sum(dim=-1).flatten() for i, j in pairs])  # (K, B * N)
    losses = losses_from_products(products, weights.to(wide), distance=distance)  # (P, B * N)
    losses = losses.T.unflatten(0, probe.shape[:-1])  # (B, N, P)
    choice = select(losses, granularity=granularity)
    return assemble(residuals, weights, choice), choice, losses


class CompiledStep:
    """`whole_step` through `torch.compile`, shared by the copies of a policy.

    Args:
        size: number of rows that the weights are filled up to, so that all steps share a graph.

    Raises:
        ValueError: distance l1 or granularity region, which make no such graph.
    """

    def __init__(self, size: int, *, distance: Distance = "cosine", granularity: Granularity = "token") -> None:
        if distance == "l1" or granularity == "region":
            raise ValueError(
                "compile=True works with distance cosine or l2 and granularity token, step or global, got "
                f"{distance!r} and {granularity!r}: leave compile out"
            )
        self.size, self.distance, self.granularity = size, distance, granularity
        self._compiled: Any = torch.compile(whole_step, dynamic=True, fullgraph=True)
        self._lock = Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __call__(
        self, probes: Sequence[Tensor], probe: Tensor, residuals: Sequence[Tensor], *, weights: Tensor
    ) -> Step | None:
        """As `whole_step`, for at most `size` predictors; None where it cannot be compiled, with one warning."""
        if self._compiled is None:
            return None
        filled = torch.cat([weights, weights[:1].expand(self.size - len(weights), -1)]).to(probe.device)
        try:
            with self._lock:
                residual, choice, losses = self._compiled(
                    list(probes), probe, list(residuals),
                    weights=filled, distance=self.distance, granularity=self.granularity,
                )  # fmt: skip
        except Exception as error:  # what fails depends on the machine: no compiler, no Triton, an unknown device
            self._compiled = None
            first = str(error).strip().split("\n")[0]
            warnings.warn(f"compile=True failed ({first}), going on without it", RuntimeWarning, stacklevel=2)
            return None
        return residual, choice, losses[..., : len(weights)]
