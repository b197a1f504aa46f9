"""Apply one Taylor predictor: FORA is order 0, TaylorSeer (on the global residual) order 1 or 2."""

from __future__ import annotations

from dataclasses import replace

from tapstudy.policies.config import TAPConfig
from tapstudy.policies.single import SinglePolicy


class FixedPolicy(SinglePolicy):
    """Apply the predictor (order, shift) to all tokens, on the schedule of `config`. Needs no probe, runs no block.

    Args:
        order: polynomial order.
        shift: s in the horizon k - s.
        config: everything but the family.
    """

    def __init__(self, order: int, shift: float = 0, *, config: TAPConfig | None = None) -> None:
        config = replace(config or TAPConfig(), orders=(order,), shifts=(shift,))
        super().__init__(config.family, config)
