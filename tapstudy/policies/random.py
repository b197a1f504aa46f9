"""Give every token a predictor at random: the control without information."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.scoring import assemble
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
        found, residuals = self.candidates(step), self.anchors.residuals
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        drawn = torch.randint(len(found.first), residuals[0].shape[:2], generator=generator)
        choice = onto(drawn, residuals[0].device)
        return self.labelled(found, assemble(residuals, found.weights, choice), choice)
