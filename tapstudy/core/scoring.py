"""TAP at a skip step: score all predictors on the probe, choose one for every token, apply it to the residuals.

With F the actual features, A_0 the newest anchor, d_j = A_j - A_0 and g = A_0 - F, weights w of sum S predict

    F + e = S F + sum_(j>0) w_j d_j + S g.

In units of |F| = 1 let u = <F + e, F> be the length of the prediction along F, and s its length at right angles to F.
Then 1 - cos = 1 - u / sqrt(u^2 + s^2). The score -u|u| / s^2, minus the squared cotangent of the angle, orders
predictors as 1 - cos does and keeps its relative precision for any angle.

Where features hardly differ, s^2 and |e|^2 are small sums of large terms. Processors compute them by inner products in
float64 (`products`), accelerators by coordinates in float32 (`coordinates`), in one kernel where triton is (`fused`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from tapstudy.core import fused as kernels
from tapstudy.core.coordinates import coefficients_of, coordinate_scores
from tapstudy.core.products import Distance as Distance
from tapstudy.core.products import absolute_losses, anchor_products, scores_from_products, step_products
from tapstudy.core.products import wide_dtype as wide_dtype
from tapstudy.core.resident import resident

Granularity = Literal["token", "region", "step", "global"]
Grid = tuple[int, int, int]


class History(Protocol):
    """Holds the residuals of J anchors, (batch, token, channel) each. They may still travel while probes are scored."""

    @property
    def residuals(self) -> Sequence[Tensor]: ...


def tap_step(
    probes: Sequence[Tensor],
    probe: Tensor,
    history: History,
    weights: Tensor,
    *,
    known: Tensor | None = None,
    distance: Distance = "cosine",
    granularity: Granularity = "token",
    grid: Grid | None = None,
    region_size: int = 4,
    fused: bool | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Predict the residual at a skip step.

    Args:
        probes: those of J anchors, newest first, (batch, token, channel) each.
        probe: the actual one.
        history: of the same anchors.
        weights: (predictor, J).
        known, distance: as for `rank`.
        granularity, grid, region_size: as for `select`.
        fused: compute in two kernels, see `fused`. None: on CUDA, where triton is.

    Returns:
        Residual (batch, token, channel), choice (batch, token), ranking scores (batch, token, predictor).
    """
    scores, nearest = rank(probes, probe, weights, distance=distance, known=known, fused=fused)
    choice = choose(
        scores, nearest=nearest, distance=distance, granularity=granularity, grid=grid, region_size=region_size
    )
    residual = assemble(history.residuals, weights, choice, fused=fused)
    return residual, choice, scores


def score(
    anchors: Sequence[Tensor], actual: Tensor, weights: Tensor, *, distance: Distance = "cosine", **how: Any
) -> Tensor:
    """Score predictors: the scores of `rank`, whose arguments these are."""
    return rank(anchors, actual, weights, distance=distance, **how)[0]


def rank(
    anchors: Sequence[Tensor],
    actual: Tensor,
    weights: Tensor,
    *,
    distance: Distance = "cosine",
    known: Tensor | None = None,
    fused: bool | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Score predictors, and choose where one kernel does both.

    The ranking score orders them as their losses do, which `losses_of` makes of it.

    Args:
        anchors: J tensors (batch, token, channel), newest first.
        actual: the features to predict, (batch, token, channel).
        weights: one row per predictor, (predictor, J).
        distance: as for `predictor_losses`.
        known: `anchor_products` of the anchors, which only processors read; computed here if None.
        fused: as for `tap_step`.

    Returns:
        Scores, (batch, token, predictor), float32 (float64 for features in float64), and the choice of each token for
        itself, (batch, token), or None. Cosine: minus the squared cotangent of the angle between prediction and
        features, with the sign of the cotangent: -inf for a perfect prediction, 0 for a right angle or no direction.
        l2: the squared loss. l1: the loss.
    """
    if fused or not actual.is_cpu:
        ranked = kernels.rank(anchors, actual, weights, distance=distance, fused=fused)
        if ranked is not None:
            return ranked
    dtype = torch.promote_types(actual.dtype, torch.float32)
    if actual.device.type != "cpu":
        coefficients = resident(weights, actual.device, coefficients_of(distance))
        scores = coordinate_scores(anchors, actual, coefficients, distance=distance)  # (P, T)
    elif distance == "l1":
        scores = absolute_losses(anchors, actual, weights.double())
    else:
        products = step_products(anchors, actual, anchor_products(anchors) if known is None else known)  # (K, T)
        scores = scores_from_products(products, weights.double(), distance=distance, dtype=dtype)
    return scores.to(dtype).T.unflatten(0, actual.shape[:-1]), None


def losses_of(scores: Tensor, *, distance: Distance = "cosine") -> Tensor:
    """Turn ranking scores into losses, of their shape and dtype."""
    if distance == "l1":
        return scores
    if distance == "l2":
        return scores.sqrt()
    size = scores.abs()
    cosine = size.reciprocal().add_(1).rsqrt_()  # without its sign
    return torch.where(scores > 0, 1 + cosine, 1 / ((1 + size) * (1 + cosine)))


def predictor_losses(
    anchors: Sequence[Tensor], actual: Tensor, weights: Tensor, *, distance: Distance = "cosine"
) -> Tensor:
    """Measure the distance between every prediction and the actual features, per token, over channels.

    Args:
        anchors, actual, weights: as for `rank`.
        distance: `cosine`: 1 - cos; `l2`: |prediction - actual| / |actual|; `l1`: the same in the 1-norm. A token
            whose actual features are zero gets the absolute norm, and cosine distance 1.

    Returns:
        (batch, token, predictor), as by `rank`, to about 1e-6 relative.
    """
    return losses_of(score(anchors, actual, weights, distance=distance), distance=distance)


def choose(
    scores: Tensor,
    *,
    nearest: Tensor | None = None,
    distance: Distance = "cosine",
    granularity: Granularity = "token",
    grid: Grid | None = None,
    region_size: int = 4,
) -> Tensor:
    """Choose by ranking scores, (batch, token, predictor), as `select` does by losses, unless `rank` did."""
    if granularity == "token":
        return least(scores.nan_to_num(nan=torch.inf).mT)[1] if nearest is None else nearest
    # tokens that choose together have a mean loss
    return select(losses_of(scores, distance=distance), granularity=granularity, grid=grid, region_size=region_size)


def select(
    losses: Tensor, *, granularity: Granularity = "token", grid: Grid | None = None, region_size: int = 4
) -> Tensor:
    """Choose the predictor with the least loss, the first one on a tie.

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
    return least(losses.mT)[1]  # several times faster than argmin where tokens are next to each other


def assemble(anchors: Sequence[Tensor], weights: Tensor, choice: Tensor, *, fused: bool | None = None) -> Tensor:
    """Apply to every token the predictor it chose.

    Args:
        anchors: J tensors (batch, token, channel).
        weights: (predictor, J).
        choice: (batch, token), rows of `weights`.
        fused: as for `tap_step`.

    Returns:
        (batch, token, channel), float32 or better.
    """
    if fused or not choice.is_cpu:
        assembled = kernels.assemble(anchors, weights, choice, fused=fused)
        if assembled is not None:
            return assembled
    dtype = torch.promote_types(anchors[0].dtype, torch.float32)
    rows = resident(weights, choice.device, Tensor.double if dtype == torch.float64 else Tensor.float)[
        choice
    ]  # (B, N, J)
    result = anchors[0] * rows[..., :1]  # (B, N, D)
    for j, anchor in enumerate(anchors[1:], start=1):
        result.addcmul_(anchor.to(dtype), rows[..., j : j + 1])
    return result


def least(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Find the least loss and its predictor, the first one on a tie: (..., predictor, token) -> (..., token) twice.

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


def _region_means(losses: Tensor, grid: Grid | None, size: int) -> Tensor:
    batch, tokens, predictors = losses.shape
    if grid is None or grid[0] * grid[1] * grid[2] != tokens:
        raise ValueError(f"regions need the token grid: got grid {grid} for {tokens} tokens")
    frames, height, width = grid
    row = torch.arange(height, device=losses.device) // size
    column = torch.arange(width, device=losses.device) // size
    in_frame = row[:, None] * (width // size + 1) + column  # (height, width)
    frame = torch.arange(frames, device=losses.device)[:, None, None]
    most = (height - 1) // size * (width // size + 1) + (width - 1) // size  # of a frame; known without reading it
    region, count = (frame * (most + 1) + in_frame).flatten(), frames * (most + 1)  # (token,)
    sums = losses.new_zeros(batch, count, predictors).index_add_(1, region, losses)
    sizes = region.new_zeros(count).index_add_(0, region, torch.ones_like(region)).clamp(min=1)
    return (sums / sizes[:, None])[:, region]  # (batch, token, predictor)
