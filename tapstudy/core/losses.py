"""Losses of linear predictors from inner products alone.

A predictor with weights w of the anchors A_j errs by e = (sum_j w_j - 1) F + sum_(j>0) w_j (A_j - A_0)
+ (sum_j w_j) (A_0 - F), with F the actual features. In units of |F| = 1, let s be the length of e beside F,
u = 1 + <e, F> that of the prediction along F, and q^2 = u^2 + s^2. Then 1 - cos = s^2 / (q (q + u)) for u > 0. Only
s^2, a quadratic form of products of differences, may cancel: it is summed in float64. What follows may be float32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import isqrt, prod
from typing import Literal, NamedTuple

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


def wide_dtype(device: torch.device) -> torch.dtype:
    """What inner products are summed in: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def pairs_of(count: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """The pairs (0, 0), (0, 1), .., (1, 1), .. of `count` vectors: first and second, (K,) each."""
    first, second = torch.triu_indices(count, count, device=device)
    return first, second


def vectors_of(pairs: int) -> int:
    """How many vectors make so many pairs, each one's with itself among them."""
    return (isqrt(8 * pairs + 1) - 1) // 2


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
    room = _room(workspace, products, (*weights.shape[:-1], products.shape[-1]))  # (..., P, T)
    dtype = torch.float32 if out is None else out.dtype
    sums, error = _error(weights)
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


class Forms(NamedTuple):
    """What of the remoteness of predictors depends on their weights alone.

    Attributes:
        along: of F's products, what gives minus that with the prediction, (predictor, J + 1). None with l2.
        across: of the products of [A_1 - A_0, .., A_(J-1) - A_0, A_0 - F] at right angles to F, what gives the
            prediction's, (predictor, J (J + 1) / 2); with l2 of all products what gives |e|^2, (predictor, K).
        first, second: the pairs of J vectors.
    """

    along: Tensor | None
    across: Tensor
    first: Tensor
    second: Tensor


@lru_cache(maxsize=256)
def forms_of(weights: Tensor, *, distance: Distance, device: torch.device) -> Forms:
    """The forms of weights (predictor, J) that will not be changed; kept, since the same weights come again."""
    weights = weights.to(device, wide_dtype(device))
    sums, error = _error(weights)
    pairs = pairs_of(weights.shape[-1], device)
    if distance == "l2":
        return Forms(None, _form(torch.cat([sums - 1, error], dim=-1)), *pairs)
    # of <F, A_0>, which takes the place of |F|^2, <F, A_j - A_0> and <F, A_0 - F>
    along = -torch.cat([sums, weights[..., 1:], torch.zeros_like(sums)], dim=-1)
    return Forms(along, _form(error), *pairs)


def remoteness_from_products(
    products: Tensor,
    forms: Forms,
    *,
    out: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Tensor:
    """What orders predictors as their losses do, for a fraction of the operations.

    Args:
        products, out, workspace: as for `losses_from_products`, (K, token) and (predictor, token).
        forms: of the predictors, of the products' dtype.

    Returns:
        `out`. Cosine: minus the squared cotangent of the angle between prediction and features, with the sign of the
        cotangent. It is -inf for a perfect prediction, 0 for a right angle (and where there is no direction), and
        keeps its relative precision everywhere, as neither the cosine nor the sine would. l2: the squared loss.
    """
    room = _room(workspace, products, (len(forms.across), products.shape[-1]))
    dtype = torch.float32 if out is None else out.dtype
    norm = products[:1]
    if forms.along is None:
        square = torch.matmul(forms.across, products, out=room("square", products.dtype)).clamp_(min=0)
        return _cast(square.div_(torch.where(norm > 0, norm, 1)), dtype, out)
    scaled = products / norm  # in units of |F| = 1
    count = vectors_of(len(products)) - 1  # J
    along, among = scaled[: count + 1], scaled[count + 1 :]
    ahead, behind = (along[1:].index_select(0, part) for part in (forms.first, forms.second))
    beside = torch.addcmul(among, ahead, behind, value=-1)  # without their parts along F
    across = torch.matmul(forms.across, beside, out=room("square", products.dtype))
    across = _cast(across, dtype, out).clamp_(min=0)
    torch.add(along[count], 1, out=along[0])  # <F, A_0>, which may be small beside 1
    away = torch.matmul(forms.along.to(dtype), along.to(dtype), out=room("along", dtype))
    size = torch.abs(away, out=room("size", dtype))
    remoteness = torch.div(away.mul_(size), across, out=across)
    return remoteness.nan_to_num_(nan=0, posinf=torch.inf, neginf=-torch.inf)  # no direction leaves 0 / 0


def losses_of(remoteness: Tensor, *, distance: Distance = "cosine") -> Tensor:
    """The losses that belong to a remoteness, of its shape and dtype."""
    if distance == "l1":
        return remoteness
    if distance == "l2":
        return remoteness.sqrt()
    size = remoteness.abs()
    cosine = size.reciprocal().add_(1).rsqrt_()  # without its sign
    return torch.where(remoteness > 0, 1 + cosine, 1 / ((1 + size) * (1 + cosine)))


def _room(
    workspace: Workspace | None, like: Tensor, shape: tuple[int, ...]
) -> Callable[[str, torch.dtype], Tensor | None]:
    """Where results of that shape go, by name and dtype; None is new memory."""
    if workspace is None:
        return lambda name, dtype: None
    return lambda name, dtype: workspace.take(like, shape, dtype, name=name)


def _error(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of the weights, (..., P, 1), and those of the differences in the error, (..., P, J)."""
    sums = weights.sum(dim=-1, keepdim=True)
    return sums, torch.cat([weights[..., 1:], sums], dim=-1)


def _form(coefficients: Tensor) -> Tensor:
    """Weights of the products of M vectors in |sum_m c_m v_m|^2: (..., M) -> (..., K)."""
    first, second = pairs_of(coefficients.shape[-1], coefficients.device)
    share = torch.where(first == second, 1.0, 2.0).to(coefficients)
    return share * coefficients[..., first] * coefficients[..., second]


def _cast(values: Tensor, dtype: torch.dtype, out: Tensor | None) -> Tensor:
    return values.to(dtype) if out is None else out.copy_(values)
