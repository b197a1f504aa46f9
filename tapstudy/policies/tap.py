"""TAP, the Token-Adaptive Predictor (arXiv 2603.03792)."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.scoring import predictor_losses, select
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction


class TAPPolicy(AnchoredPolicy):
    """At a skip step every token takes the predictor that forecasts its probe best.

    Cost of a skip step beside the model's own embedding, first modulation and tail: O(J^2 D) per token for the Gram
    matrix of J anchors, O(J^2) per candidate, O(J D) to assemble. Memory: J probes and J residuals per context.
    """

    needs_probe = True

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        config, anchors = self.config, self.anchors
        found = self.candidates(step)  # weights (P, J)
        losses = predictor_losses(
            anchors.probes, probe, found.weights, distance=config.distance, workspace=self.workspace
        )  # (B, N, P)
        choice = select(
            losses, granularity=config.granularity, grid=self.run.grid, region_size=config.region_size
        )  # (B, N)
        return self.apply(found, choice, losses)
