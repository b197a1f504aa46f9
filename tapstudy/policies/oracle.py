"""Give every token the predictor whose residual is truly closest: a yardstick, which needs the truth."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.scoring import Distance, predictor_losses
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig


class OraclePolicy(AnchoredPolicy):
    """Choose by the true error of the residual at this step.

    It is best step by step along its own trajectory, which does not make the end of that trajectory the closest one.

    Args:
        distance: how the true error is measured; `l2` is the relative error that recordings store.
    """

    needs_truth = True

    def __init__(self, config: TAPConfig | None = None, *, distance: Distance = "l2") -> None:
        super().__init__(config)
        self.distance = distance

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert truth is not None
        found = self.candidates(step)
        errors = predictor_losses(self.anchors.residuals, truth, found.weights, distance=self.distance)  # (B, N, P)
        return self.apply(found, self.select(errors), errors)
