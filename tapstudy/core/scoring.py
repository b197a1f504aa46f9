"""How far every predictor is from the actual features, which one each token takes, and what it then predicts.

All predictors of a family are linear in the same J anchors. So the error of predictor p at a token is
e_p = sum_j w_pj (F_j - F) + (sum_j w_pj - 1) F, and |e_p|^2 and |F + e_p|^2 are linear in the products of
[F, F_1 - F, .., F_J - F] with each other, their Gram matrix: the cost is O(J^2) passes over the channels, not O(P).
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
    """Buffers used again from step to step: scoring on a processor then allocates next to none in a steady state.

    New memory is dear: the system clears it page by page, which takes longer than a score. Accelerators get it new
    every time: their allocators keep it, and share it with the model.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(self, like: Tensor, shape: tuple[int, ...], dtype: torch.dtype, *, name: str = "") -> Tensor:
        """An uninitialised tensor on the device of `like`, valid until the next call with the same name."""
        if like.device.type != "cpu":
            return like.new_empty(shape, dtype=dtype)
        count = prod(shape)
        held = self._held.get(name)
        if held is None or held.dtype != dtype or len(held) < count:
            held = self._held[name] = torch.empty(count, dtype=dtype)
        return held[:count].view(shape)


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
        (batch, token, predictor), float64 (float32 on devices without it); in memory the tokens of a predictor are
        next to each other.
    """
    workspace = workspace or Workspace()
    dtype = torch.float32 if actual.device.type == "mps" else torch.float64
    weights = weights.to(dtype)  # (P, J)
    rows = [actual.flatten(0, -2), *(anchor.flatten(0, -2) for anchor in anchors)]  # (T, D) each, T = B * N
    # e_p in [F, F_1 - F, ..]; the first coefficient is zero for predictors that reproduce constants.
    error = torch.cat([weights.sum(dim=1, keepdim=True) - 1, weights], dim=1)  # (P, J + 1)
    parts = _chunks(rows, dtype, workspace)
    losses = actual.new_empty(len(weights), len(rows[0]), dtype=dtype)  # (P, T)
    if distance == "l1":
        _absolute_losses(parts, error.to(actual.device), losses)
    else:
        pairs = torch.triu_indices(len(rows), len(rows), device=weights.device)
        forms = quadratic_forms(error, torch.eye(len(rows))[0], pairs).to(actual.device)
        _gram_losses(parts, forms, losses, count=len(rows), distance=distance, workspace=workspace)
    return losses.T.view(*actual.shape[:-1], len(weights))


def _chunks(rows: list[Tensor], dtype: torch.dtype, workspace: Workspace) -> Parts:
    """[F, F_1 - F, .., F_J - F] of some tokens after the other, (J + 1, chunk, D), in one buffer used again."""
    tokens, width = rows[0].shape
    size = max(1, CHUNK_BYTES // (len(rows) * width * dtype.itemsize))
    if rows[0].device.type != "cpu":
        size *= 64  # accelerators want few, large launches
    buffer = workspace.take(rows[0], (len(rows), min(size, tokens), width), dtype, name="basis")
    for start in range(0, tokens, size):
        part = slice(start, min(start + size, tokens))
        basis = buffer[:, : part.stop - start]
        for vector, row in zip(basis, rows, strict=True):
            vector.copy_(row[part])
        basis[1:] -= basis[0]
        yield part, basis


def _gram_losses(
    parts: Parts, forms: Tensor, losses: Tensor, *, count: int, distance: Distance, workspace: Workspace
) -> None:
    gram = workspace.take(losses, (losses.shape[1], count, count), losses.dtype, name="gram")  # (T, J + 1, J + 1)
    for part, basis in parts:
        vectors = basis.transpose(0, 1)  # (chunk, J + 1, D)
        torch.bmm(vectors, vectors.mT, out=gram[part])
    first, second = torch.triu_indices(count, count, device=gram.device)
    products = gram.permute(1, 2, 0)[first, second]  # (K, T)
    losses_from_products(products, products[0], forms, distance=distance, out=losses, workspace=workspace)


def quadratic_forms(error: Tensor, actual: Tensor, pairs: Tensor) -> Tensor:
    """What turns products of basis vectors into |e|^2 and |F + e|^2 - |F|^2, both halved.

    Args:
        error: coefficients of every predictor's error e in the basis, (..., predictor, vector).
        actual: those of the actual features F, (vector,).
        pairs: the two vectors of every product, (2, K); each pair once, in either order.

    Returns:
        (2, ..., predictor, K).
    """
    first, second = pairs
    share = torch.where(first == second, 0.5, 1.0).to(error)  # (K,); half of a square, or of a product twice
    square = share * error[..., first] * error[..., second]
    actual = actual.to(error)
    cross = share * (error[..., first] * actual[second] + error[..., second] * actual[first])  # <e, F>
    return torch.stack([square, square + cross])


def losses_from_products(
    products: Tensor,
    norm: Tensor,
    forms: Tensor,
    *,
    distance: Distance,
    out: Tensor,
    workspace: Workspace,
) -> Tensor:
    """Cosine or l2 losses of predictors that are linear in some vectors, from the products of these vectors.

    Args:
        products: inner products of pairs of vectors, (..., K, token).
        norm: |F|^2 of the actual features, (..., token).
        forms: of the same pairs, from `quadratic_forms`, (2, ..., predictor, K).
        distance: not l1.
        out: where the losses go, (..., predictor, token); narrower than `products` if rounding may be coarse.

    Returns:
        `out`.
    """
    shape = (*forms.shape[1:-1], products.shape[-1])  # (..., P, T)
    square, growth, length, spare = workspace.take(products, (4, *shape), products.dtype, name="losses")
    if out.dtype == products.dtype:
        square = out
    if distance == "l2":
        scaled = products * (2 / torch.where(norm > 0, norm, 1))[..., None, :]  # (..., K, T)
        torch.matmul(forms[0], scaled, out=square)
        return out.copy_(square).clamp_(min=0).sqrt_()
    scaled = products / norm[..., None, :]  # in units of |F| = 1
    torch.matmul(forms[0], scaled, out=square)  # |e|^2 / 2
    torch.matmul(forms[1], scaled, out=growth)  # (|F + e|^2 - 1) / 2
    # With q = |F + e|, |e|^2 = (q - 1)^2 + 2 q (1 - cos), and q - 1 = (q^2 - 1) / (q + 1) does not cancel.
    torch.add(growth, 0.5, out=length)
    length.mul_(2).sqrt_()  # q
    growth.div_(torch.add(length, 1, out=spare))  # (q - 1) / 2
    square.addcmul_(growth, growth, value=-2).div_(length)
    # No direction, of the actual features or of the prediction, leaves 0 / 0.
    return out.copy_(square.nan_to_num_(nan=1, posinf=1, neginf=1).clamp_(min=0))


def _absolute_losses(parts: Parts, error: Tensor, losses: Tensor) -> None:
    for part, basis in parts:
        norm = basis[0].abs().sum(dim=-1)  # (chunk,)
        for p, coefficients in enumerate(error):
            distances = torch.tensordot(coefficients, basis, dims=1).abs_().sum(dim=-1)  # (chunk,)
            losses[p, part] = distances / torch.where(norm > 0, norm, 1)


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
    return losses.min(dim=-1).indices  # several times faster than argmin where tokens are next to each other


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
