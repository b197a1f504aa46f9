"""Average all predictors, each weighted by how well it forecasts the probe. Beyond the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.checks import check_least
from tapstudy.core.scoring import assemble
from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class BlendedPolicy(AnchoredPolicy):
    """Give every token the row sum_p a_p w_p, with a = softmax(-power * log loss), so that a_p ~ loss^-power.

    The logarithm makes the weights independent of the scale of the losses, which grow with the distance. Power 0 is
    the plain mean over the distinct predictors, a large power is TAP. `Prediction.choice` names the predictor of
    largest weight. Cost and memory as for TAP.

    Raises:
        ValueError: a power below 0, or a granularity other than "token".
    """

    needs_probe = True

    def __init__(self, config: TAPConfig | None = None, *, power: float = 2.0, family: Family | None = None) -> None:
        super().__init__(config, family=family)
        check_least("BlendedPolicy: power", power, 0)
        if self.config.granularity != "token":
            raise ValueError(f"BlendedPolicy weighs per token, got granularity={self.config.granularity!r}")
        self.power = power

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        found = self.candidates(step)  # weights (P, J)
        losses = self.losses(found, probe)  # (B, N, P)
        shares = blend_shares(losses, self.power)  # (B, N, P)
        rows = (shares @ onto(found.weights, shares.device, shares.dtype)).flatten(0, 1)  # (B * N, J)
        every = torch.arange(len(rows), device=rows.device).view(losses.shape[:2])
        inverse, first = (onto(index, losses.device) for index in (found.inverse, found.first))
        residual = assemble(self.anchors.residuals, rows, every)
        return Prediction(residual, first[shares.argmax(dim=-1)], losses[..., inverse])


def blend_shares(losses: Tensor, power: float) -> Tensor:
    """Compute loss^-power, summing to 1 over the last dim. A loss of zero takes all, a NaN nothing."""
    extremes = torch.finfo(losses.dtype)
    logs = losses.nan_to_num(nan=extremes.max).clamp(min=extremes.tiny).log()
    return torch.softmax(-power * logs, dim=-1)
