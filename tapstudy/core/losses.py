"""Losses of linear predictors from inner products alone.

A predictor with weights w of the anchors A_j errs by e = (sum_j w_j - 1) F + sum_(j>0) w_j (A_j - A_0)
+ (sum_j w_j) (A_0 - F), with F the actual features. In units of |F| = 1, let s be the length of e beside F,
u = 1 + <e, F> that of the prediction along F, and q^2 = u^2 + s^2. Then 1 - cos = s^2 / (q (q + u)) for u > 0. Only
s^2, a quadratic form of products of differences, may cancel: it is summed in float64. What follows may be float32.
"""

from __future__ import annotations

from math import prod
from typing import Literal

import torch
from torch import Tensor

Distance = Literal["cosine", "l2", "l1"]


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


def pairs_of(count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The pairs (0, 0), (0, 1), .., (1, 1), .. of `count` vectors: first and second, (K,) each."""
    first, second = torch.triu_indices(count, count, device=device)
    return first, second


def losses_from_products(
    products: Tensor,
    weights: Tensor,
    *,
    distance: Distance,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """Cosine or l2 losses of predictors, from the products of [F, A_1 - A_0, .., A_(J-1) - A_0, A_0 - F].

    Args:
        products: of these J + 1 vectors in the order of `pairs_of`, so |F|^2 comes first, (..., K, token).
        weights: (..., predictor, J), of the same dtype.
        distance: not l1.
        out: where the losses go, (..., predictor, token), float32 or as `products`; a new float32 tensor if None.
        workspace: memory for what lies between; new if None.

    Returns:
        `out`. A token without direction, or a prediction, has cosine distance 1; a token of zeros the absolute norm.
    """
    norm = products[..., :1, :]
    shape = (*weights.shape[:-1], products.shape[-1])  # (..., P, T)
    dtype = torch.float32 if out is None else out.dtype
    sums = weights.sum(dim=-1, keepdim=True)
    error = torch.cat([weights[..., 1:], sums], dim=-1)  # of the differences, (..., P, J)

    def room(name: str, dtype: torch.dtype) -> Tensor | None:
        return None if workspace is None else workspace.take(products, shape, dtype, name=name)

    if distance == "l2":
        scaled = products / torch.where(norm > 0, norm, 1)
        form = _form(torch.cat([sums - 1, error], dim=-1))
        square = torch.matmul(form, scaled, out=room("square", products.dtype))  # |e|^2
        return _cast(square, dtype, out).clamp_(min=0).sqrt_()
    count = weights.shape[-1]
    scaled = products / norm  # in units of |F| = 1
    along = scaled[..., 1 : count + 1, :]  # of the differences, (..., J, T)
    first, second = pairs_of(count, products.device)
    across = scaled[..., count + 1 :, :] - along[..., first, :] * along[..., second, :]
    square = torch.matmul(_form(error), across, out=room("square", products.dtype))
    ahead = torch.cat([along[..., :-1, :], 1 + along[..., -1:, :]], dim=-2).to(dtype)  # of A_j - A_0, and of A_0
    u = torch.matmul(error.to(dtype), ahead, out=room("along", dtype))
    s2 = _cast(square, dtype, out).clamp_(min=0)
    q2 = torch.addcmul(s2, u, u, out=room("length", dtype))
    q = torch.sqrt(q2, out=room("root", dtype))
    size = torch.abs(u, out=room("size", dtype))
    # 1 - |cos|, and 2 |cos| more where the prediction points away from the features
    losses = s2.div_(q2.addcmul_(size, q)).addcdiv_(u.clamp_(max=0), q, value=-2)
    return losses.nan_to_num_(nan=1, posinf=1)  # no direction leaves 0 / 0


def _form(coefficients: Tensor) -> Tensor:
    """Weights of the products of M vectors in |sum_m c_m v_m|^2: (..., M) -> (..., K)."""
    first, second = pairs_of(coefficients.shape[-1], coefficients.device)
    share = torch.where(first == second, 1.0, 2.0).to(coefficients)
    return share * coefficients[..., first] * coefficients[..., second]


def _cast(values: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    return values.to(dtype) if out is None else out.copy_(values)
