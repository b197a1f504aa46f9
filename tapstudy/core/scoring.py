"""How far every predictor is from the actual features, which one each token takes, and what it then predicts.

All predictors of a family are linear in the same J anchors. So the error of predictor p at a token is
e_p = sum_j w_pj (F_j - F) + (sum_j w_pj - 1) F, and its norm and its inner product with F follow from one
(J+1) x (J+1) Gram matrix of [F, F_1 - F, .., F_J - F]: the cost is O(J^2) passes over the channels, not O(P).
Differences to F, and accumulation in float64, keep cosine distances near 1e-7 apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

Distance = Literal["cosine", "l2", "l1"]
Granularity = Literal["token", "region", "step", "global"]
Parts = Iterator[tuple[slice, Tensor]]

# Tokens are scored in chunks whose float64 basis is at most this large, which stays in a processor's cache.
CHUNK_BYTES = 4 << 20


class Workspace:
    """A buffer used again from step to step: scoring on a processor then allocates none in a steady state.

    Accelerators get a new one every time: their allocators do the same, and share it with the model.
    """

    def __init__(self) -> None:
        self._held: Tensor | None = None

    def take(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor on the device of `like`, valid until the next call."""
        if like.device.type != "cpu":
            return like.new_empty(shape, dtype=dtype)
        count = prod(shape)
        if self._held is None or self._held.dtype != dtype or len(self._held) < count:
            self._held = torch.empty(count, dtype=dtype)
        return self._held[:count].view(shape)


def predictor_losses(
    anchors: Sequence[Tensor],
    actual: Tensor,
    weights: Tensor,
    *,
    distance: Distance = "cosine",
    workspace: Workspace | None = None,
) -> Tensor:
    """Distance between every prediction and the actual features, per token, over channels.

    Args:
        anchors: J tensors (batch, token, channel).
        actual: the features to predict, (batch, token, channel).
        weights: one row per predictor, (predictor, J).
        distance: `cosine`: 1 - cos; `l2`: |prediction - actual| / |actual|; `l1`: the same in the 1-norm. A token
            whose actual features are zero gets the absolute norm, and cosine distance 1.
        workspace: for calls that come again and again.

    Returns:
        (batch, token, predictor), float64 (float32 on devices without it).
    """
    dtype = torch.float32 if actual.device.type == "mps" else torch.float64
    weights = weights.to(actual.device, dtype)  # (P, J)
    rows = [actual.flatten(0, -2), *(anchor.flatten(0, -2) for anchor in anchors)]  # (T, D) each, T = B * N
    score = _absolute_losses if distance == "l1" else _gram_losses
    parts = _chunks(rows, weights.dtype, workspace or Workspace())
    return score(parts, weights, tokens=len(rows[0]), distance=distance).view(*actual.shape[:-1], len(weights))


def _chunks(rows: list[Tensor], dtype: torch.dtype, workspace: Workspace) -> Iterator[tuple[slice, Tensor]]:
    """[F, F_1 - F, .., F_J - F] of some tokens after the other, (J + 1, chunk, D), in one buffer used again."""
    tokens, width = rows[0].shape
    size = max(1, CHUNK_BYTES // (len(rows) * width * dtype.itemsize))
    if rows[0].device.type != "cpu":
        size *= 64  # accelerators want few, large launches
    buffer = workspace.take(rows[0], (len(rows), min(size, tokens), width), dtype)
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        basis = buffer[:, : part.stop - start]
        for vector, row in zip(basis, rows, strict=True):
            vector.copy_(row[part])
        basis[1:] -= basis[0]
        yield part, basis


def _gram_losses(parts: Parts, weights: Tensor, *, tokens: int, distance: Distance) -> Tensor:
    gram = weights.new_empty(tokens, weights.shape[1] + 1, weights.shape[1] + 1)  # (T, J + 1, J + 1)
    for part, basis in parts:
        vectors = basis.transpose(0, 1)  # (chunk, J + 1, D)
        torch.bmm(vectors, vectors.mT, out=gram[part])
    # e_p in that basis; the first coefficient is zero for predictors that reproduce constants.
    error = torch.cat([weights.sum(dim=1, keepdim=True) - 1, weights], dim=1)  # (P, J + 1)
    products = error[:, :, None] * error[:, None]  # (P, J + 1, J + 1)
    norm = gram[:, 0, :1]  # |F|^2, (T, 1)
    square = (gram.flatten(1) @ products.flatten(1).T).clamp_(min=0)  # |e_p|^2, (T, P)
    if distance == "l2":
        return square.div_(torch.where(norm > 0, norm, 1)).sqrt_()
    along = gram[:, 0] @ error.T  # <e_p, F>, (T, P)
    predicted = norm + 2 * along + square  # |prediction|^2
    across = (square - along * along / norm).clamp_(min=0)  # |part of e_p at right angles to F|^2
    cosine = (norm + along) / (norm * predicted).sqrt_()
    # 1 - cos = sin^2 / (1 + cos) does not cancel at small angles; beyond a right angle 1 - cos does not.
    loss = torch.where(cosine > 0, across / predicted / (1 + cosine), 1 - cosine)
    return torch.where((norm > 0) & (predicted > 0), loss, 1.0)


def _absolute_losses(parts: Parts, weights: Tensor, *, tokens: int, distance: Distance) -> Tensor:
    del distance
    error = torch.cat([weights.sum(dim=1, keepdim=True) - 1, weights], dim=1)  # (P, J + 1)
    losses = weights.new_empty(tokens, len(weights))  # (T, P)
    for part, basis in parts:
        norm = basis[0].abs().sum(dim=-1)  # (chunk,)
        for p, coefficients in enumerate(error):
            distances = torch.tensordot(coefficients, basis, dims=1).abs_().sum(dim=-1)  # (chunk,)
            losses[part, p] = distances / torch.where(norm > 0, norm, 1)
    return losses


def select(
    losses: Tensor,
    *,
    granularity: Granularity = "token",
    grid: tuple[int, int, int] | None = None,
    region_size: int = 4,
) -> Tensor:
    """The predictor with the least loss, the first one on a tie.

    Args:
        losses: (batch, token, predictor).
        granularity: `token`: each token for itself. `region`: one choice per window of `region_size` by
            `region_size` tokens of a frame. `step`: one per sample. `global`: one for the whole batch. The losses of
            the tokens that choose together are averaged.
        grid: frames, rows and columns of the tokens; only `region` needs it.

    Returns:
        Column of `losses`, (batch, token), int64. A loss that is not a number is never chosen over one that is.
    """
    losses = losses.nan_to_num(nan=torch.inf)
    if granularity == "global":
        return losses.mean(dim=(0, 1)).argmin().expand(losses.shape[:2])
    if granularity == "step":
        return losses.mean(dim=1).argmin(dim=-1, keepdim=True).expand(losses.shape[:2])
    if granularity == "region":
        losses = _region_means(losses, grid, region_size)
    return losses.argmin(dim=-1)


def _region_means(losses: Tensor, grid: tuple[int, int, int] | None, size: int) -> Tensor:
    batch, tokens, predictors = losses.shape
    if grid is None or grid[0] * grid[1] * grid[2] != tokens:
        raise ValueError(f"regions need the token grid: got grid {grid} for {tokens} tokens")
    frames, height, width = grid
    row = torch.arange(height, device=losses.device) // size
    column = torch.arange(width, device=losses.device) // size
    in_frame = row[:, None] * (width // size + 1) + column  # (height, width)
    frame = torch.arange(frames, device=losses.device)[:, None, None]
    region = (frame * (int(in_frame.max()) + 1) + in_frame).flatten()  # (token,)
    count = int(region.max()) + 1
    sums = losses.new_zeros(batch, count, predictors).index_add_(1, region, losses)
    sizes = torch.bincount(region, minlength=count).clamp(min=1)
    return (sums / sizes[:, None])[:, region]  # (batch, token, predictor)


def assemble(anchors: Sequence[Tensor], weights: Tensor, choice: Tensor) -> Tensor:
    """Apply to every token the predictor it chose.

    Args:
        anchors: J tensors (batch, token, channel).
        weights: (predictor, J).
        choice: (batch, token), rows of `weights`.

    Returns:
        (batch, token, channel), float32 or better.
    """
    dtype = torch.promote_types(anchors[0].dtype, torch.float32)
    rows = weights.to(choice.device, dtype)[choice]  # (B, N, J)
    result = anchors[0] * rows[..., :1]  # (B, N, D)
    for j, anchor in enumerate(anchors[1:], start=1):
        result.addcmul_(anchor.to(dtype), rows[..., j : j + 1])
    return result
