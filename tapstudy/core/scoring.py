"""TAP at a skip step: score all predictors on the probe, choose one for every token, apply it to the residuals.

All predictors of a family are linear in the same J anchors, so inner products are enough to score them: the cost is
O(J) passes over the channels, whatever the number of predictors. With F the actual features, A_0 the newest anchor,
d_j = A_j - A_0 and g = A_0 - F, weights w of sum S predict

    F + e = S F + sum_(j>0) w_j d_j + S g.

In units of |F| = 1 let u = <F + e, F> be the length of the prediction along F, and s its length at right angles to F.
Then 1 - cos = 1 - u / sqrt(u^2 + s^2). The score -u|u| / s^2, minus the squared cotangent of the angle, orders
predictors as 1 - cos does and keeps its relative precision for any angle. Where features hardly differ, s^2 (or |e|^2)
is a small sum of large terms, so products of differences are taken in float64; what follows may be float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, Protocol

import torch
from torch import Tensor

Distance = Literal["cosine", "l2", "l1"]
Granularity = Literal["token", "region", "step", "global"]
Grid = tuple[int, int, int]
Vectors = Sequence[Tensor] | Tensor

# Tokens are scored in chunks whose vectors in float64 take at most so much memory, which stays in a processor's cache.
CHUNK_BYTES = 6 << 20


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Predict the residual at a skip step.

    Args:
        probes: those of J anchors, newest first, (batch, token, channel) each.
        probe: the actual one.
        history: of the same anchors.
        weights: (predictor, J).
        known, distance: as for `score`.
        granularity, grid, region_size: as for `select`.

    Returns:
        Residual (batch, token, channel), choice (batch, token), ranking scores (batch, token, predictor).
    """
    scores = score(probes, probe, weights, distance=distance, known=known)
    choice = choose(scores, distance=distance, granularity=granularity, grid=grid, region_size=region_size)
    return assemble(history.residuals, weights, choice), choice, scores


def score(
    anchors: Sequence[Tensor],
    actual: Tensor,
    weights: Tensor,
    *,
    distance: Distance = "cosine",
    known: Tensor | None = None,
) -> Tensor:
    """Rank predictors: the ranking score orders them as their losses do, which `losses_of` makes of it.

    Args:
        anchors: J tensors (batch, token, channel), newest first.
        actual: the features to predict, (batch, token, channel).
        weights: one row per predictor, (predictor, J).
        distance: as for `predictor_losses`.
        known: `anchor_products` of the anchors; computed here if None.

    Returns:
        (batch, token, predictor), float32 (float64 for features in float64); in memory the tokens of a predictor are
        next to each other. Cosine: minus the squared cotangent of the angle between prediction and features, with the
        sign of the cotangent: -inf for a perfect prediction, 0 for a right angle or no direction. l2: the squared
        loss. l1: the loss.
    """
    dtype = torch.promote_types(actual.dtype, torch.float32)
    weights = weights.to(actual.device, wide_dtype(actual.device))
    if distance == "l1":
        scores = _absolute_losses(anchors, actual, weights)  # (P, T)
    else:
        products = step_products(anchors, actual, anchor_products(anchors) if known is None else known)  # (K, T)
        scores = scores_from_products(products, weights, distance=distance, dtype=dtype)
    return scores.to(dtype).T.unflatten(0, actual.shape[:-1])


def anchor_products(anchors: Sequence[Tensor]) -> Tensor:
    """Multiply [A_0, d_1, .., d_(J-1)] with each other: (J, J, T), T = batch * token. Good for these anchors only."""

    def multiply(vectors: Vectors) -> Tensor:  # of A_0, A_1, ..
        for vector in vectors[1:]:
            vector.sub_(vectors[0])
        return torch.stack([_dots(vector, vectors) for vector in vectors])

    return _by_token(anchors, multiply)


def step_products(anchors: Sequence[Tensor], actual: Tensor, known: Tensor) -> Tensor:
    """Multiply all pairs of [F, d_1, .., d_(J-1), g], in the order of `pairs_of`.

    Args:
        known: `anchor_products`. Between full steps, new are |F|^2 and the products of g; the others follow, and lose
            precision where F is a million times smaller than A_0.

    Returns:
        (K, T), K = (J + 1) (J + 2) / 2, in float64 where the device has it.
    """

    def multiply(vectors: Vectors) -> Tensor:  # of A_1, .., F, A_0
        *_, actual, last = vectors
        square = torch.linalg.vector_norm(actual, dim=-1).square_()
        return torch.cat([_dots(last.sub_(actual), vectors), square[None]])

    *older, ahead, last, square = _by_token([*anchors[1:], actual, anchors[0]], multiply).split(1)  # (1, T) each
    newest = ahead + last  # A_0 = F + g
    across = torch.cat([*older, last])  # of g with d_1, .., g
    across[:-1] -= newest
    rows = [square, known[0, 1:] - across[:-1], ahead]  # of F with F, d_j and g
    for j in range(1, len(known)):
        rows += [known[j, j:], across[j - 1 : j]]
    return torch.cat([*rows, last])


def scores_from_products(
    products: Tensor, weights: Tensor, *, distance: Distance = "cosine", dtype: torch.dtype = torch.float32
) -> Tensor:
    """Rank predictors from `step_products`.

    Args:
        products: (..., K, T).
        weights: (..., predictor, J), of the same dtype.
        distance: not l1.
        dtype: of the result.

    Returns:
        (..., predictor, T), see `score`.
    """
    sums = weights.sum(dim=-1, keepdim=True)  # (..., P, 1)
    error = torch.cat([weights[..., 1:], sums], dim=-1)  # of d_1, .., g, (..., P, J)
    norm = products[..., :1, :]
    if distance == "l2":
        form = quadratic_form(torch.cat([sums - 1, error], dim=-1))
        return (form @ (products / torch.where(norm > 0, norm, 1))).clamp_(min=0).to(dtype)
    count = weights.shape[-1]
    scaled = products / norm  # in units of |F| = 1
    along = scaled[..., 1 : count + 1, :]  # of d_1, .., g, (..., J, T)
    first, second = pairs_of(count, products.device)
    across = scaled[..., count + 1 :, :] - along.index_select(-2, first) * along.index_select(-2, second)
    square = (quadratic_form(error) @ across).clamp_(min=0).to(dtype)  # s^2
    ahead = torch.cat([along[..., :-1, :], 1 + along[..., -1:, :]], dim=-2)  # of d_1, .., A_0, which may be small
    away = -error.to(dtype) @ ahead.to(dtype)  # -u
    scores = away.abs().mul_(away).div_(square)
    return scores.nan_to_num_(nan=0, posinf=torch.inf, neginf=-torch.inf)  # no direction leaves 0 / 0


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
        anchors, actual, weights: as for `score`.
        distance: `cosine`: 1 - cos; `l2`: |prediction - actual| / |actual|; `l1`: the same in the 1-norm. A token
            whose actual features are zero gets the absolute norm, and cosine distance 1.

    Returns:
        (batch, token, predictor), as `score`, to about 1e-6 relative.
    """
    return losses_of(score(anchors, actual, weights, distance=distance), distance=distance)


def choose(
    scores: Tensor,
    *,
    distance: Distance = "cosine",
    granularity: Granularity = "token",
    grid: Grid | None = None,
    region_size: int = 4,
) -> Tensor:
    """Choose by ranking scores, (batch, token, predictor), as `select` does by losses."""
    if granularity != "token":  # tokens that choose together have a mean loss
        scores = losses_of(scores, distance=distance)
    return select(scores, granularity=granularity, grid=grid, region_size=region_size)


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
    return least(losses.movedim(-1, -2))[1]  # several times faster than argmin where tokens are next to each other


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


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return what inner products are summed in: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def pairs_of(count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Pair `count` vectors as (0, 0), (0, 1), .., (1, 1), ..: first and second of each pair, (K,)."""
    first, second = torch.triu_indices(count, count, device=device)
    return first, second


def quadratic_form(coefficients: Tensor) -> Tensor:
    """Weigh the products of M vectors so that their sum is |sum_m c_m v_m|^2: (..., M) -> (..., K)."""
    first, second = pairs_of(coefficients.shape[-1], coefficients.device)
    return torch.where(first == second, 1, 2) * coefficients[..., first] * coefficients[..., second]


def _dots(vector: Tensor, others: Vectors) -> Tensor:
    """Multiply a vector with n others, token by token: (T, D) and n of (T, D) -> (n, T)."""
    if torch.compiler.is_compiling():
        return torch.stack([(vector * other).sum(dim=-1) for other in others])
    return torch.bmm(vector[:, None], torch.as_tensor(others).permute(1, 2, 0)).squeeze(1).T  # faster than n sums


def _by_token(features: Sequence[Tensor], multiply: Callable[[Vectors], Tensor]) -> Tensor:
    """Apply `multiply` to n tensors (..., channel) in float64, which it may change in place: (..., T) of all tokens."""
    if torch.compiler.is_compiling():  # makes one loop of it, without vectors in memory
        # by way of float32, since processors are slow to go from half precision to float64 at once
        single, wide = torch.promote_types(features[0].dtype, torch.float32), wide_dtype(features[0].device)
        return multiply([feature.flatten(0, -2).to(single).to(wide, copy=True) for feature in features])
    return torch.cat([multiply(vectors) for vectors in _chunks(features)], dim=-1)


def _chunks(features: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield n features, (..., channel) each, of some tokens after others: (n, chunk, D) in float64, in one buffer."""
    rows = [feature.flatten(0, -2) for feature in features]
    (tokens, width), wide = rows[0].shape, wide_dtype(rows[0].device)
    size = max(1, CHUNK_BYTES // (len(rows) * width * wide.itemsize))
    if rows[0].device.type != "cpu":
        size *= 64  # accelerators want few, large launches
    buffer = rows[0].new_empty(len(rows), min(size, tokens), width, dtype=wide)
    for start in range(0, tokens, size):
        vectors = buffer[:, : tokens - start]
        for vector, row in zip(vectors, rows, strict=True):
            vector.copy_(row[start : start + size])
        yield vectors


def _absolute_losses(anchors: Sequence[Tensor], actual: Tensor, weights: Tensor) -> Tensor:
    """Compute l1 losses, (predictor, T)."""
    sums = weights.sum(dim=1, keepdim=True)  # (P, 1)
    error = torch.cat([weights[:, 1:], sums - 1, sums], dim=1)  # of d_1, .., F and g, (P, J + 1)
    found = []
    for vectors in _chunks([*anchors[1:], actual, anchors[0]]):
        for vector in vectors[:-2]:
            vector.sub_(vectors[-1])
        vectors[-1].sub_(vectors[-2])
        norm = vectors[-2].abs().sum(dim=-1)  # (chunk,)
        sizes = [torch.tensordot(row, vectors, dims=1).abs_().sum(dim=-1) for row in error]  # (chunk,) each
        found.append(torch.stack(sizes) / torch.where(norm > 0, norm, 1))
    return torch.cat(found, dim=1)


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
