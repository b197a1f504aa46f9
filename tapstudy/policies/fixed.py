"""One predictor for all tokens and steps: FORA is order 0, TaylorSeer (on the global residual) order 1 or 2."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig


class FixedPolicy(AnchoredPolicy):
    """The predictor (order, shift), on the schedule of `config`. Runs no block at a skip step: it has no probe.

    Args:
        order: polynomial order.
        shift: s in the horizon k - s.
        config: everything but the family.
    """

    def __init__(self, order: int, shift: float = 0, *, config: TAPConfig | None = None) -> None:
        super().__init__(replace(config or TAPConfig(), orders=(order,), shifts=(shift,)))

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        batch, tokens = self.anchors.residuals[0].shape[:2]
        choice = torch.zeros(batch, tokens, dtype=torch.int64, device=self.anchors.residuals[0].device)
        return self.apply(self.candidates(step), choice)
