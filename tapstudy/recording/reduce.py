"""Reduce features to fewer numbers per token, (batch, token, channel) -> (batch, token, fewer): `record(reduce=...)`.

Their repr is part of a recording's configuration, so it tells all that determines them.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tapstudy.core.checks import check_least


@dataclass(frozen=True)
class Norms:
    """Take the Euclidean norm of every token, (batch, token, 1)."""

    def __call__(self, features: Tensor) -> Tensor:
        return features.float().norm(dim=-1, keepdim=True)  # (B, N, 1)


@dataclass(frozen=True)
class RandomProjection:
    """Project onto `size` random directions, scaled so that squared distances keep their mean.

    Source: Johnson and Lindenstrauss, 1984. The matrix is drawn on the CPU from `seed`, the same on every machine.
    """

    size: int
    seed: int = 0

    def __post_init__(self) -> None:
        check_least("RandomProjection: size", self.size, 1)

    def __call__(self, features: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        matrix = torch.randn(features.shape[-1], self.size, generator=generator) / self.size**0.5  # (D, K)
        return features.float() @ matrix.to(features.device)  # (B, N, K)


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """Take coordinates along fixed orthonormal directions around a mean; `fit` finds those of largest variance.

    Attributes:
        mean: (channel,).
        directions: (channel, size), orthonormal columns, the largest variance first.
        variances: along each direction, (size,).
    """

    mean: Tensor = field(repr=False)
    directions: Tensor = field(repr=False)
    variances: Tensor = field(repr=False)

    @classmethod
    def fit(cls, features: Tensor, size: int) -> PrincipalComponents:
        """Find the directions of features (..., channel), where every leading index is one observation.

        Raises ValueError if there are fewer channels or observations than components.
        """
        rows = features.detach().flatten(0, -2).double()  # (T, D)
        if not 1 <= size <= min(rows.shape):
            raise ValueError(f"PrincipalComponents: size must be in 1..{min(rows.shape)}, got {size}")
        mean = rows.mean(dim=0)
        _, values, directions = torch.linalg.svd(rows - mean, full_matrices=False)  # (K,), (K, D)
        directions = directions[:size].T
        # a direction and its opposite are equally good: let the largest entry be positive
        largest = directions.gather(0, directions.abs().argmax(dim=0, keepdim=True))
        variances = values[:size] ** 2 / max(1, len(rows) - 1)
        return cls(mean.float(), (directions * largest.sign()).float(), variances.float())

    def __call__(self, features: Tensor) -> Tensor:
        device = features.device
        return (features.float() - self.mean.to(device)) @ self.directions.to(device)  # (B, N, K)

    def __repr__(self) -> str:
        content = self.mean.numpy().tobytes() + self.directions.contiguous().numpy().tobytes()
        digest = hashlib.sha256(content).hexdigest()[:16]
        return f"PrincipalComponents(size={self.directions.shape[1]}, sha256={digest})"
