"""How far every predictor is from the actual features, which one each token takes, and what it then predicts.

All predictors of a family are linear in the same J anchors. So their losses follow from the products of
[F, F_1 - F_0, .., F_0 - F] with each other, with F the actual features and F_j the anchors: the cost is O(J^2) passes
over the channels, not O(P). Differences, and accumulation in float64, keep cosine distances near 1e-7 apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from tapstudy.core.losses import Distance as Distance
from tapstudy.core.losses import (
    Workspace,
    forms_of,
    losses_from_products,
    losses_of,
    remoteness_from_products,
    wide_dtype,
)
from tapstudy.core.products import AnchorWorkspace, Parts, all_products, differences

Granularity = Literal["token", "region", "step", "global"]


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
        workspace: for calls that come again and again; an `AnchorWorkspace` if with the same anchors.

    Returns:
        (batch, token, predictor), float32 (float64 for features in float64), to about 1e-6 relative; in memory the
        tokens of a predictor are next to each other.
    """
    products, losses, workspace = _products(anchors, actual, weights, distance, workspace)
    if products is not None:
        weights = weights.to(products)
        losses_from_products(products, weights, distance=distance, out=losses, workspace=workspace)
    return losses.T.view(*actual.shape[:-1], len(weights))


def predictor_remoteness(
    anchors: Sequence[Tensor],
    actual: Tensor,
    weights: Tensor,
    *,
    distance: Distance = "cosine",
    workspace: Workspace | None = None,
) -> Tensor:
    """What orders predictors as `predictor_losses` does, sooner: `losses_of` makes these of it.

    Arguments and shape as for `predictor_losses`, but the weights must never be changed in place. With l1 it is the
    loss.
    """
    products, remoteness, workspace = _products(anchors, actual, weights, distance, workspace)
    if products is not None:
        forms = forms_of(weights, distance=distance, device=products.device)
        remoteness_from_products(products, forms, out=remoteness, workspace=workspace)
    return remoteness.T.view(*actual.shape[:-1], len(weights))


def _products(
    anchors: Sequence[Tensor], actual: Tensor, weights: Tensor, distance: Distance, workspace: Workspace | None
) -> tuple[Tensor | None, Tensor, Workspace]:
    """All products, (K, T), and room for scores, (P, T), T = B * N. With l1 none, and the losses."""
    workspace = workspace or Workspace()
    wide = wide_dtype(actual.device)
    rows = [tensor.flatten(0, -2) for tensor in (actual, *anchors[1:], anchors[0])]  # (T, D) each
    scores = actual.new_empty(len(weights), len(rows[0]), dtype=torch.promote_types(actual.dtype, torch.float32))
    if distance == "l1":
        _absolute_losses(differences(rows, wide, workspace), weights.to(actual.device, wide), scores)
        return None, scores, workspace
    kept = workspace if isinstance(workspace, AnchorWorkspace) else None
    products = all_products(rows, wide, workspace) if kept is None else kept.products(rows, wide)
    return products, scores, workspace


def _absolute_losses(parts: Parts, weights: Tensor, losses: Tensor) -> None:
    sums = weights.sum(dim=1, keepdim=True)  # (P, 1)
    error = torch.cat([sums - 1, weights[:, 1:], sums], dim=1)  # (P, J + 1)
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
    return least(losses.movedim(-1, -2))[1]  # several times faster than argmin where tokens are next to each other


def choose(
    remoteness: Tensor,
    *,
    distance: Distance = "cosine",
    granularity: Granularity = "token",
    grid: tuple[int, int, int] | None = None,
    region_size: int = 4,
) -> Tensor:
    """`select` by what `predictor_remoteness` gave, (batch, token, predictor)."""
    if granularity == "token":
        return select(remoteness)
    losses = losses_of(remoteness, distance=distance)  # tokens that choose together have a mean loss
    return select(losses, granularity=granularity, grid=grid, region_size=region_size)


def least(losses: Tensor) -> tuple[Tensor, Tensor]:
    """The least loss and its predictor, the first one on a tie: (..., predictor, token) -> (..., token) twice.

    Many predictors are searched in two stages, since the least of many is found fast, but where it is slowly.
    """
    count, block = losses.shape[-2], 8
    if count < 4 * block:
        return losses.min(dim=-2)
    whole = count // block * block
    blocks = losses[..., :whole, :].unflatten(-2, (-1, block))  # (..., P / 8, 8, T)
    outer = blocks.amin(dim=-2).min(dim=-2).indices  # (..., T)
    index = outer[..., None, None, :].expand(*blocks.shape[:-3], 1, block, losses.shape[-1])
    found, inner = blocks.gather(-3, index).squeeze(-3).min(dim=-2)
    index = outer * block + inner
    if whole < count:
        last, place = losses[..., whole:, :].min(dim=-2)
        earlier = found <= last
        found, index = torch.where(earlier, found, last), torch.where(earlier, index, whole + place)
    return found, index


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
