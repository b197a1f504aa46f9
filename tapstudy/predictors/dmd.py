"""Decompose every token's past into dynamic modes: sums of exponentials in place of polynomials.

From evenly spaced snapshots X = [F_1 .. F_(J-1)] and Y = [F_0 .. F_(J-2)], newest first, exact DMD (Tu et al. 2014,
arXiv 1312.0041) finds the linear map with Y = A X on the span of X. The forecast after a part tau of the spacing is
A^tau F_0, by the powers of A's eigenvalues. With the method of snapshots this needs only the token's Gram matrix: with
X'X = V S^2 V', the map is Z = S^-1 V' X'Y V S^-1 and the forecast Y V S^-1 Z^tau S V' e_0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tapstudy.core.weights import extrapolation_row
from tapstudy.predictors.family import Label
from tapstudy.predictors.nonlinear import Grid, combine_values, token_gram


@dataclass(frozen=True)
class DynamicModes:
    """Use the longest run of evenly spaced newest anchors; before there are enough of them, a line.

    cache-dit fits one map to all tokens of a sample; here each token has its own. Of roots that are not real, as those
    of a mode that changes its sign from one snapshot to the next, the real part is taken, as there.

    Args:
        window: anchors kept.
        least: snapshots needed; a real oscillation takes 4.
        tolerance: modes with singular values below this part of the largest are dropped.

    Raises:
        ValueError: fewer than 2 snapshots, a window smaller than that, a tolerance outside [0, 1).
    """

    waits = 2  # for eigenvalues, of the Gram matrix and of the map

    window: int = 6
    least: int = 4
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        if not 2 <= self.least <= self.window:
            raise ValueError(f"DynamicModes: needs 2 <= least <= window, got least={self.least}, window={self.window}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"DynamicModes: tolerance must lie in [0, 1), got {self.tolerance}")

    @property
    def label(self) -> Label:
        return Label(self.window - 1, 0, "dmd")

    @property
    def num_anchors(self) -> int:
        return self.window

    def predict(
        self, anchors: Sequence[int], values: Sequence[Tensor], step: int, *, grid: Grid | None = None
    ) -> Tensor:
        """Tokens whose modes cannot be told apart, or whose forecast is not finite, reuse the newest anchor."""
        del grid
        count = evenly_spaced(anchors)
        if count < self.least:
            return combine_values(values, extrapolation_row(anchors, min(1, len(anchors) - 1), step - anchors[0]))
        values, spacing = values[:count], anchors[0] - anchors[1]
        weights = self._weights(token_gram(values), (step - anchors[0]) / spacing)  # (B, N, J)
        return combine_values(values, weights)

    def _weights(self, gram: Tensor, time: float) -> Tensor:
        square, right = torch.linalg.eigh(gram[..., 1:, 1:])  # S^2 (B, N, R) with R = J - 1, and V (B, N, R, R)
        kept = square > self.tolerance**2 * square[..., -1:]
        singular = torch.where(kept, square, 0).sqrt()
        inverse = torch.where(kept, singular, 1).reciprocal() * kept
        unscaled = right * inverse[..., None, :]  # V S^-1
        reduced = unscaled.mT @ gram[..., 1:, :-1] @ unscaled  # Z, (B, N, R, R)
        start = singular * right[..., 0, :]  # S V' e_0, (B, N, R)
        roots, modes = torch.linalg.eig(reduced)
        amplitudes, info = torch.linalg.solve_ex(modes, start.to(modes.dtype)[..., None])  # (B, N, R, 1)
        powers = torch.polar(roots.abs() ** time, roots.angle() * time)  # roots^time; 0 stays 0
        moved = (modes @ (powers[..., None] * amplitudes)).real  # Z^time S V' e_0, (B, N, R, 1)
        weights = torch.nn.functional.pad((unscaled @ moved)[..., 0], (0, 1))  # the oldest anchor is not in Y
        usable = weights.isfinite().all(dim=-1) & (info == 0)
        reuse = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)[0]
        return torch.where(usable[..., None], weights, reuse)


def evenly_spaced(anchors: Sequence[int]) -> int:
    """Count the newest anchors that have the same gap."""
    if len(anchors) < 3:
        return len(anchors)
    count = 2
    while count < len(anchors) and anchors[count - 1] - anchors[count] == anchors[0] - anchors[1]:
        count += 1
    return count
