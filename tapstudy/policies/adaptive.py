"""Beyond the paper: TAP whose probe also says when to run in full."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.scoring import predictor_losses
from tapstudy.policies.base import Prediction, RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.family import Family


class AdaptiveTAPPolicy(TAPPolicy):
    """Skips until even the best predictors have lost too much in sum.

    At every step after the warm-up: l_i = mean over batch and tokens of the least proxy loss over the family. Since the
    last full step these are added up; a step whose l_i brings the sum above `threshold` runs in full, and the sum
    starts again. `config.interval` remains as the longest window: the schedule S(N, w) turned into an upper bound. One
    decision for the whole batch of a context.

    Cost of a skip step: that of TAP with the scoring done twice, and waiting for the device once. Memory as for TAP.

    Args:
        threshold: in units of `config.distance`; infinite, windows are as long as `interval` allows.
        config: must not name full steps.

    Raises:
        ValueError: `full_steps` given, or a threshold below 0.
    """

    decides_by_probe = True

    def __init__(self, threshold: float, config: TAPConfig | None = None, *, family: Family | None = None) -> None:
        super().__init__(config, family=family)
        if self.config.full_steps is not None:
            raise ValueError("AdaptiveTAPPolicy finds its full steps itself: leave full_steps out")
        if not threshold >= 0:
            raise ValueError(f"AdaptiveTAPPolicy: threshold must be at least 0, got {threshold}")
        self.threshold = threshold
        self.total = 0.0

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self.total = 0.0

    def wants_full(self, step: int) -> bool:
        config, steps = self.config, self.anchors.steps
        if not steps or step < config.warmup_steps or step - steps[0] >= config.interval:
            return True
        return self.run.num_steps is not None and step >= self.run.num_steps - config.cooldown_steps

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        weights = self.candidates(step).weights
        losses = predictor_losses(self.anchors.probes, probe, weights, distance=self.config.distance)  # (B, N, P)
        return not self.total + best_loss(losses) <= self.threshold

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        super().observe(step, probe, residual)
        self.total = 0.0

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        assert prediction.proxy_loss is not None
        self.total += best_loss(prediction.proxy_loss)


def best_loss(losses: Tensor) -> float:
    """Mean over batch and tokens of the least loss, (batch, token, predictor). Waits for the device."""
    return float(losses.amin(dim=-1).mean())
