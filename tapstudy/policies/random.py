"""Give every token a predictor at random: the control without information."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig


class RandomPolicy(AnchoredPolicy):
    """Draw uniformly among the distinct predictors, from (seed, step): the same run twice makes the same choices."""

    def __init__(self, config: TAPConfig | None = None, *, seed: int = 0) -> None:
        super().__init__(config)
        self.seed = seed

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        found = self.candidates(step)
        residual = self.anchors.residuals[0]
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        choice = torch.randint(len(found.first), residual.shape[:2], generator=generator)
        return self.apply(found, onto(choice, residual.device))
