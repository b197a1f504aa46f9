"""Use one member of a family of linear predictors for all tokens and steps."""

from __future__ import annotations

from torch import Tensor

from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class SinglePolicy(AnchoredPolicy):
    """Apply one member of a family to all tokens, on the schedule of `config`. Needs no probe, runs no block.

    Args:
        family: such as `HermiteFamily()`.
        config: everything but the family.
        member: index into the family's labels.

    Raises:
        ValueError: no such member.
    """

    def __init__(self, family: Family, config: TAPConfig | None = None, *, member: int = 0) -> None:
        super().__init__(config, family=family)
        if not 0 <= member < len(self.labels):
            raise ValueError(f"SinglePolicy: member must be below {len(self.labels)}, got {member}")
        self.member = member

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        return self.take(step, self.member)
