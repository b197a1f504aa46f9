"""Score predictors in float32: the way of accelerators, where float64 is slow or missing.

With the vectors of `scoring`, [F, g, d_1, .., d_(J-1)] = Q R by Gram-Schmidt, token by token: the columns of Q are
orthonormal, and the first is F / |F|. A prediction S F + S g + sum_(j>0) w_j d_j has the coordinates
c = R (S, S, w_1, ..): c_0 is its length u along F, and the others make up its length s at right angles. Those of the
error e are R (S - 1, S, w_1, ..).

No small number is a difference of inner products here: differences are taken of the features themselves, where they are
exact or rounded once, and a coordinate is a sum of terms of its own size. So a loss is good to about
1e-7 sum_j |w_j d_j| / |e|, where inner products in float32 would lose the square of that ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tapstudy.core.products import Distance

CHUNK_BYTES = 3 << 29  # tokens are scored in chunks, whose vectors and products take at most so much memory
TINY = torch.finfo(torch.float32).tiny  # in place of a square of zero, below which all products are zero too


def coefficients_of(distance: Distance) -> Callable[[Tensor], Tensor]:
    """Name what makes (predictor, J) weights into (predictor, J + 1) coefficients of F, g, d_1, .. in float32."""
    return _of_prediction if distance == "cosine" else _of_error


def coordinate_scores(
    anchors: Sequence[Tensor], actual: Tensor, coefficients: Tensor, *, distance: Distance = "cosine"
) -> Tensor:
    """Rank predictors.

    Args:
        anchors: J tensors (..., channel), newest first.
        actual: the features to predict, (..., channel).
        coefficients: see `coefficients_of`.

    Returns:
        (predictor, T), see `scoring.rank`.
    """
    measure = {"cosine": _cosine, "l2": _l2, "l1": _l1}[distance]
    rows = [features.flatten(0, -2) for features in (actual, *anchors)]
    if torch.compiler.is_compiling():  # makes one loop of it, without vectors in memory
        return measure(_vectors(rows), coefficients)
    size = max(1, CHUNK_BYTES // (2 * len(rows) * rows[0].shape[1] * torch.float32.itemsize))
    chunks = zip(*(row.split(size) for row in rows), strict=True)
    scores = [measure(_vectors(chunk), coefficients) for chunk in chunks]
    return scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)


def _cosine(vectors: Tensor, coefficients: Tensor) -> Tensor:
    coordinates, _ = _gram_schmidt(vectors, coefficients)
    cotangent = coordinates[0] / torch.linalg.vector_norm(coordinates[1:], dim=0)  # u / s, (P, T)
    scores = cotangent.abs().mul_(cotangent).neg_()
    return scores.nan_to_num_(nan=0, posinf=torch.inf, neginf=-torch.inf)  # no direction leaves 0 / 0


def _l2(vectors: Tensor, coefficients: Tensor) -> Tensor:
    coordinates, norm = _gram_schmidt(vectors, coefficients)
    return (torch.linalg.vector_norm(coordinates, dim=0) / torch.where(norm > 0, norm, 1)).square_()


def _l1(vectors: Tensor, coefficients: Tensor) -> Tensor:
    norm = vectors[0].abs().sum(dim=-1)  # (T,)
    sizes = [(row[:, None, None] * vectors).sum(dim=0).abs_().sum(dim=-1) for row in coefficients]  # (T,) each
    return torch.stack(sizes) / torch.where(norm > 0, norm, 1)


def _gram_schmidt(vectors: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Compute c of every predictor, (M, P, T), and |F|, (T,). The vectors, (M, T, D), are overwritten.

    Products are element-wise: a library's matrix product could round to fewer bits (TF32).
    """
    count, tokens, _ = vectors.shape
    triangle = torch.zeros(count, count, tokens, dtype=vectors.dtype, device=vectors.device)  # R
    for i, vector in enumerate(vectors):
        length, others = triangle[i, i], vectors[i + 1 :]
        torch.linalg.vector_norm(vector, dim=-1, out=length)
        if len(others):
            part = (vector * others).sum(dim=-1).div_(length.square().clamp_(min=TINY))  # (M - i - 1, T)
            torch.mul(part, length, out=triangle[i, i + 1 :])
            others.addcmul_(part[..., None], vector, value=-1)
    return (triangle[:, None] * coefficients[..., None]).sum(dim=2), triangle[0, 0]


def _vectors(rows: Sequence[Tensor]) -> Tensor:
    """Turn F, A_0, A_1, .., (T, D) each, into F, g, d_1, .., (M, T, D), in memory of their own."""
    actual, newest, *older = rows
    dtype = torch.promote_types(actual.dtype, torch.float32)
    vectors = actual.new_empty(len(rows), *actual.shape, dtype=dtype)
    f, g, *differences = vectors
    f.copy_(actual)
    g.copy_(newest)
    for difference, anchor in zip(differences, older, strict=True):
        torch.sub(anchor, g, out=difference)
    g.sub_(f)
    return vectors


def _of_prediction(weights: Tensor) -> Tensor:
    sums = weights.sum(dim=-1, keepdim=True)
    return torch.cat([sums, sums, weights[:, 1:]], dim=-1).to(torch.float32)


def _of_error(weights: Tensor) -> Tensor:
    sums = weights.sum(dim=-1, keepdim=True)
    return torch.cat([sums - 1, sums, weights[:, 1:]], dim=-1).to(torch.float32)
