"""Cluster points by k-means."""

from __future__ import annotations

import torch
from torch import Tensor


def k_means(points: Tensor, count: int, *, seed: int = 0) -> Tensor:
    """Run Lloyd's algorithm from far-apart starting points (k-means++), on the CPU.

    Args:
        points: (point, dimension).
        count: number of clusters, at most that of the points.

    Returns:
        Their centres, (count, dimension). A cluster that loses its points keeps its centre.
    """
    points, generator = points.cpu(), torch.Generator().manual_seed(seed)
    centres = points[torch.randint(len(points), (1,), generator=generator)]
    for _ in range(count - 1):
        nearest = torch.cdist(points, centres).square().amin(dim=1)  # (point,)
        weights = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        centres = torch.cat([centres, points[torch.multinomial(weights, 1, generator=generator)]])
    groups = torch.full((len(points),), -1)
    for _ in range(100):
        found = nearest_centre(points, centres)
        if torch.equal(found, groups):
            break
        groups = found
        centres = torch.stack([
            points[groups == g].mean(dim=0) if (groups == g).any() else centres[g] for g in range(count)
        ])  # fmt: skip
    return centres


def nearest_centre(points: Tensor, centres: Tensor) -> Tensor:
    """Find the nearest of the centres (count, dimension) of every point, (..., dimension) -> (...)."""
    return torch.cdist(points.flatten(0, -2), centres).argmin(dim=1).reshape(points.shape[:-1])
