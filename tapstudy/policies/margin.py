"""Leave a default predictor only when another one's proxy loss is clearly lower. Beyond the paper."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.checks import check_between
from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class MarginPolicy(AnchoredPolicy):
    """Let a predictor replace the default one only if its loss is below `factor` times that one's.

    The proxy ranks predictors with error; a narrow win on the probe is often no win on the residual. Factor 1 is TAP
    (but ties go to the default), 0 is the default alone. Cost and memory as for TAP.

    Args:
        default: order and shift of the default predictor, a member of the family.
        factor: between 0 and 1.

    Raises:
        ValueError: a default outside the family, or a factor outside [0, 1].
    """

    needs_probe = True

    def __init__(
        self,
        config: TAPConfig | None = None,
        *,
        default: tuple[int, float] = (1, 0),
        factor: float = 0.8,
        family: Family | None = None,
    ) -> None:
        super().__init__(config, family=family)
        check_between("MarginPolicy: factor", factor, 0, 1)
        self.default, self.factor = self.index_of(*default), factor

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        found = self.candidates(step)
        losses = self.losses(found, probe)  # (B, N, P)
        default = int(found.inverse[self.default])
        # the first of equal losses is chosen, so the default comes first
        order = onto(torch.tensor([default, *(p for p in range(losses.shape[-1]) if p != default)]), losses.device)
        handicapped = losses[..., order]  # a copy
        handicapped[..., 0] *= self.factor
        choice = self.select(handicapped)  # (B, N), in `order`
        return self.apply(found, order[choice], losses)
