"""Let TAP's probe also say when to run in full. Beyond the paper."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.checks import check_least
from tapstudy.core.scoring import wide_dtype
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.family import Family


class AdaptiveTAPPolicy(TAPPolicy):
    """Skip until even the best predictors have lost too much in sum.

    At every step after the warm-up: l_i = mean over batch and tokens of the least proxy loss over the family. Since the
    last full step these are added up; a step whose l_i brings the sum above `threshold` runs in full, and the sum
    starts again. `config.interval` remains as the longest window: the schedule S(N, w) turned into an upper bound. One
    decision for the whole batch of a context.

    Cost of a skip step: that of TAP with the scoring done twice. Memory as for TAP.

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
        check_least("AdaptiveTAPPolicy: threshold", threshold, 0)
        self.threshold = threshold
        self.restart()

    def restart(self) -> None:
        super().restart()
        self.total: Tensor | float = 0.0  # stays on the device

    def wants_full(self, step: int) -> bool:
        config, steps, count = self.config, self.anchors.steps, self.run.num_steps
        if not steps or step < config.warmup_steps or step - steps[0] >= config.interval:
            return True
        return count is not None and step >= count - config.schedule.cooldown_steps

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        return not bool(self.total + best_loss(self.losses(self.candidates(step), probe)) <= self.threshold)

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        assert prediction.proxy_loss is not None
        self.total += best_loss(prediction.proxy_loss)


def best_loss(losses: Tensor) -> Tensor:
    """Average the least of the losses (batch, token, predictor) over batch and tokens: one number, on the device."""
    return losses.amin(dim=-1).mean().to(wide_dtype(losses.device))
