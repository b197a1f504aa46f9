"""Score predictors by inner products in float64: the way of processors.

All predictors of a family are linear in the same J anchors, so inner products are enough to score them: the cost is
O(J) passes over the channels, whatever the number of predictors. With F the actual features, A_0 the newest anchor,
d_j = A_j - A_0 and g = A_0 - F, weights w of sum S predict F + e with e as in `scoring`; u, s and |e| are quadratic
forms in the products of [F, d_1, .., g]. Where features hardly differ, s^2 (or |e|^2) is a small sum of large terms, so
products of differences are taken in float64; what follows may be float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

Distance = Literal["cosine", "l2", "l1"]
Vectors = Sequence[Tensor] | Tensor

# Tokens are scored in chunks whose vectors in float64 take at most so much memory, which stays in a processor's cache.
CHUNK_BYTES = 6 << 20


def anchor_products(anchors: Sequence[Tensor]) -> Tensor:
    """Multiply [A_0, d_1, .., d_(J-1)] with each other: (J, J, T), T = batch * token. Good for these anchors only."""

    def multiply(vectors: Vectors) -> Tensor:  # of A_0, A_1, ..
        for vector in vectors[1:]:
            vector.sub_(vectors[0])
        return torch.stack([_dots(vector, vectors) for vector in vectors])

    return _by_token(anchors, multiply)


def step_products(anchors: Sequence[Tensor], actual: Tensor, known: Tensor) -> Tensor:
    """Multiply all pairs of [F, d_1, .., d_(J-1), g], in the order (0, 0), (0, 1), .., (1, 1), ..

    Args:
        known: `anchor_products`. Between full steps, new are |F|^2 and the products of g; the others follow, and lose
            precision where F is a million times smaller than A_0.

    Returns:
        (K, T), K = (J + 1) (J + 2) / 2, float64.
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
        (..., predictor, T), see `scoring.rank`.
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
    first, second = torch.triu_indices(count, count, device=products.device)
    across = scaled[..., count + 1 :, :] - along.index_select(-2, first) * along.index_select(-2, second)
    square = (quadratic_form(error) @ across).clamp_(min=0).to(dtype)  # s^2
    ahead = torch.cat([along[..., :-1, :], 1 + along[..., -1:, :]], dim=-2)  # of d_1, .., A_0, which may be small
    away = -error.to(dtype) @ ahead.to(dtype)  # -u
    scores = away.abs().mul_(away).div_(square)
    return scores.nan_to_num_(nan=0, posinf=torch.inf, neginf=-torch.inf)  # no direction leaves 0 / 0


def absolute_losses(anchors: Sequence[Tensor], actual: Tensor, weights: Tensor) -> Tensor:
    """Compute l1 losses, (predictor, T)."""
    sums = weights.sum(dim=1, keepdim=True)  # (P, 1)
    error = torch.cat([weights[:, 1:], sums - 1, sums], dim=1)  # of d_1, .., F and g, (P, J + 1)

    def measure(vectors: Tensor) -> Tensor:  # of A_1, .., F, A_0
        for vector in vectors[:-2]:
            vector.sub_(vectors[-1])
        vectors[-1].sub_(vectors[-2])
        norm = vectors[-2].abs().sum(dim=-1)  # (chunk,)
        sizes = [torch.tensordot(row, vectors, dims=1).abs_().sum(dim=-1) for row in error]  # (chunk,) each
        return torch.stack(sizes) / torch.where(norm > 0, norm, 1)

    return _by_token([*anchors[1:], actual, anchors[0]], measure)


def wide_dtype(device: torch.device) -> torch.dtype:
    """Return the widest floats of a device: float64, unless it has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def quadratic_form(coefficients: Tensor) -> Tensor:
    """Weigh the products of M vectors so that their sum is |sum_m c_m v_m|^2: (..., M) -> (..., K)."""
    count = coefficients.shape[-1]
    first, second = torch.triu_indices(count, count, device=coefficients.device)
    return torch.where(first == second, 1, 2) * coefficients[..., first] * coefficients[..., second]


def _dots(vector: Tensor, others: Vectors) -> Tensor:
    """Multiply a vector with n others, token by token: (T, D) and n of (T, D) -> (n, T)."""
    if torch.compiler.is_compiling():
        return torch.stack([(vector * other).sum(dim=-1) for other in others])
    return torch.bmm(vector[:, None], torch.as_tensor(others).permute(1, 2, 0)).squeeze(1).T  # faster than n sums


def _by_token(features: Sequence[Tensor], multiply: Callable[[Any], Tensor]) -> Tensor:
    """Apply `multiply` to n tensors (..., channel) in float64, which it may change in place: (..., T) of all tokens.

    Tokens come in chunks, of n rows in one buffer, (n, chunk, channel).
    """
    if torch.compiler.is_compiling():  # makes one loop of it, without vectors in memory
        # by way of float32, since processors are slow to go from half precision to float64 at once
        single = torch.promote_types(features[0].dtype, torch.float32)
        return multiply([feature.flatten(0, -2).to(single).to(torch.float64, copy=True) for feature in features])
    rows = [feature.flatten(0, -2) for feature in features]
    tokens, width = rows[0].shape
    size = max(1, CHUNK_BYTES // (len(rows) * width * torch.float64.itemsize))
    buffer, found = rows[0].new_empty(len(rows), min(size, tokens), width, dtype=torch.float64), []
    for start in range(0, tokens, size):
        vectors = buffer[:, : tokens - start]  # (n, chunk, D)
        for vector, row in zip(vectors, rows, strict=True):
            vector.copy_(row[start : start + size])
        found.append(multiply(vectors))
    return torch.cat(found, dim=-1)
