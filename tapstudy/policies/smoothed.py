"""Choose by the proxy losses of the whole window so far, not of one step. Beyond the paper."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.checks import check_between
from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class SmoothedPolicy(AnchoredPolicy):
    """Choose by S_i = L_i + decay * S_(i-1), L the proxy losses at a step; S starts again at every full step.

    The sum is kept per label (order, shift) and token: members that coincide at one step may differ at the next.
    Decay 0 is TAP, 1 the plain sum over the window, in which later steps weigh more because losses grow with the
    distance. Cost as for TAP; memory: one number more per token and member of the family.

    Raises:
        ValueError: a decay outside [0, 1].
    """

    needs_probe = True

    def __init__(self, config: TAPConfig | None = None, *, decay: float = 1.0, family: Family | None = None) -> None:
        super().__init__(config, family=family)
        check_between("SmoothedPolicy: decay", decay, 0, 1)
        self.decay = decay
        self.restart()

    def restart(self) -> None:
        super().restart()
        self.sums: Tensor | None = None  # S of the step before, (B, N, P), one per label

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        found = self.candidates(step)
        losses = self.losses(found, probe)  # of distinct ones
        inverse = onto(found.inverse, losses.device)
        chosen = self.select(self._add(losses[..., inverse]))  # (B, N), labels
        return self.apply(found, inverse[chosen], losses)

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        assert prediction.proxy_loss is not None
        self.sums = self._add(prediction.proxy_loss)

    def _add(self, losses: Tensor) -> Tensor:
        return losses if self.sums is None else losses + self.decay * self.sums

    @property
    def cache_bytes(self) -> int:
        return super().cache_bytes + (0 if self.sums is None else self.sums.nbytes)
