"""Choose predictors so that their errors on the probe cancel over the window. Beyond the paper."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.scoring import assemble, predictor_losses
from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class DriftPolicy(AnchoredPolicy):
    """Choose by the accumulated error: the solver adds up the steps of a window, so the sum of their errors counts.

    With e_i(p) the signed error of predictor p on the probe at step i, and E the sum of those of the predictors that a
    token has taken since the last full step, it takes the p of least |E + e_i(p)| / |h_i - E|. E starts again at 0 at
    every full step, so the first skip step of a window is TAP with the relative L2 distance. (All steps count alike:
    meant for schedulers with steps of nearly the same length.)

    Cost over TAP: one more pass over the anchors' probes. Memory over TAP: one probe in float32 or better.

    Raises:
        ValueError: distance "l1".
    """

    needs_probe = True

    def __init__(self, config: TAPConfig | None = None, *, family: Family | None = None) -> None:
        super().__init__(config, family=family)
        if self.config.distance == "l1":
            raise ValueError(
                "DriftPolicy measures sums of errors by their relative L2 norm: distance='l1' is not there"
            )
        self.restart()

    def restart(self) -> None:
        super().restart()
        self.total: Tensor | None = None  # E, (B, N, D)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        found = self.candidates(step)
        # E + e_p = prediction - (h - E)
        wanted = probe if self.total is None else probe - self.total  # (B, N, D)
        losses = predictor_losses(self.anchors.probes, wanted, found.weights, distance="l2")  # (B, N, P)
        return self.apply(found, self.select(losses), losses)

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        assert probe is not None
        assert prediction.choice is not None
        found = self.candidates(step)
        chosen = onto(found.inverse, prediction.choice.device)[prediction.choice]  # (B, N)
        error = assemble(self.anchors.probes, found.weights, chosen) - probe  # (B, N, D)
        self.total = error if self.total is None else self.total + error

    @property
    def cache_bytes(self) -> int:
        return super().cache_bytes + (0 if self.total is None else self.total.nbytes)
