"""Fit the weights over the anchors to the probe, token by token, around a default predictor. Beyond the paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tapstudy.core.scoring import assemble, wide_dtype
from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Label


class RidgePolicy(AnchoredPolicy):
    """Give a token the row w + delta, w the default predictor's, delta fitted to its probe and kept small. No family.

    With d_j = h(a_j) - h(a_0) and e = h - sum_j w_j h(a_j) at a token, delta_j (j >= 1) minimises
    |e - sum_j delta_j d_j|^2 + strength * mean_j |d_j|^2 * |delta|^2, and delta_0 = -sum_j delta_j, so that constant
    features stay exact. Strength 0 is least squares on the probe, a large one the default predictor alone.

    Cost of a skip step: the Gram matrix of the anchors as for TAP, and one small solve per token. Memory as for TAP.

    Args:
        default: order and shift of the default predictor.
        num_anchors: J; J - 1 weights are fitted. At least order + 1.

    Raises:
        ValueError: a strength of 0 or less, or too few anchors.
    """

    needs_probe = True

    def __init__(
        self,
        config: TAPConfig | None = None,
        *,
        default: tuple[int, float] = (1, 0),
        strength: float = 1.0,
        num_anchors: int = 3,
    ) -> None:
        order, shift = default
        if not strength > 0 or num_anchors < order + 1:
            raise ValueError(
                f"RidgePolicy: strength must be above 0 and num_anchors at least order + 1 = {order + 1}, got "
                f"{strength} and {num_anchors}"
            )
        super().__init__(replace(config or TAPConfig(), orders=(order,), shifts=(shift,)))
        self.strength = strength
        self.labels: tuple[Label, ...] = ()
        self.anchors.capacity = num_anchors

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        default = self.candidates(step).weights[0]  # (J,)
        rows = ridge_rows(self.anchors.probes, probe, default, strength=self.strength).flatten(0, 1)  # (B * N, J)
        every = torch.arange(len(rows), device=rows.device).view(probe.shape[:2])
        return Prediction(assemble(self.anchors.residuals, rows, every))


def ridge_rows(anchors: Sequence[Tensor], actual: Tensor, default: Tensor, *, strength: float) -> Tensor:
    """Fit the rows of `RidgePolicy`.

    Args:
        anchors: J tensors (batch, token, channel), newest first.
        actual: the features to fit, (batch, token, channel).
        default: the row that delta is added to, (J,).

    Returns:
        (batch, token, J), float64 (float32 on devices without it).
    """
    dtype = wide_dtype(actual.device)
    default = onto(default, actual.device, dtype)
    newest, *older = (anchor.to(dtype) for anchor in anchors)  # (B, N, D) each
    if not older:
        return default.expand(*actual.shape[:2], 1)
    spread = torch.stack([anchor - newest for anchor in older], dim=-2)  # (B, N, J - 1, D)
    # the default row, up to rounding, sums to 1; written with `newest` taken out, nothing large cancels
    missing = actual.to(dtype) - default.sum() * newest - (default[1:, None] * spread).sum(dim=-2)  # (B, N, D)
    gram = spread @ spread.mT  # (B, N, J - 1, J - 1)
    size = gram.diagonal(dim1=-2, dim2=-1).mean(dim=-1)  # (B, N)
    size = torch.where(size > 0, size, 1)
    penalty = strength * size[..., None, None] * torch.eye(len(older), dtype=dtype, device=actual.device)
    delta = torch.linalg.solve_ex(gram + penalty, (spread @ missing[..., None]).squeeze(-1)).result  # (B, N, J - 1)
    return default + torch.cat([-delta.sum(dim=-1, keepdim=True), delta], dim=-1)
