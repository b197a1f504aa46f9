"""Control where adaptivity pays: TAP right after the warm-up, one fixed predictor from there on."""

from __future__ import annotations

from torch import Tensor

from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy


class FirstWindowPolicy(TAPPolicy):
    """Run TAP while the newest anchor belongs to the warm-up; after that, all tokens take the predictor (order, shift).

    The warm-up's anchors are one step apart and those of later windows N: only there are the differences taken over a
    gap much shorter than the distance to predict.

    Args:
        order: of the later predictor.
        shift: s in its horizon k - s.
        config: as for TAP; the predictor must be a member of its family.

    Raises:
        ValueError: explicit full steps, which have no warm-up, or a predictor outside the family.
    """

    def __init__(self, order: int = 1, shift: float = 0, *, config: TAPConfig | None = None) -> None:
        super().__init__(config)
        if self.config.full_steps is not None:
            raise ValueError("FirstWindowPolicy: full_steps have no warm-up: use interval and warmup_steps")
        self.later = self.index_of(order, shift)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        if self.anchors.steps[0] < self.config.warmup_steps:
            return super().predict(step, probe, truth)
        return self.take(step, self.later)
