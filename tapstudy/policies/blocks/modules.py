"""Predict what every attention and feed-forward layer gives: FORA and TaylorSeer as they were published."""

from __future__ import annotations

from collections.abc import Collection

from tapstudy.policies.base import RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.decision import Layout, Part
from tapstudy.policies.parts import PartsPolicy
from tapstudy.predictors.family import Family
from tapstudy.predictors.taylor import TaylorFamily


class ModulesPolicy(PartsPolicy):
    """Between full steps no attention and no feed-forward layer runs: each gives what is predicted from its own past.

    Predicted is the output before the gate; norms, modulation and gates of all blocks run, with the time of the step.
    Order 0 is FORA (arXiv 2407.01425), orders 1 and above TaylorSeer (arXiv 2503.06923), on the schedule of `config`.
    Of layers side by side, what they give together is kept. Cost of a skip step: embeddings, modulation and tail.
    Memory: (order + 1) outputs of all these layers per context.

    Args:
        order: of the Taylor predictor.
        config: the schedule; its other settings are not read, but for `differences` and `basis`.
        family: in place of the Taylor predictor, any other family; the first predictor that is in it.
    """

    def __init__(self, order: int = 1, config: TAPConfig | None = None, *, family: Family | None = None) -> None:
        self.config = config or TAPConfig()
        taylor = TaylorFamily((order,), (0,), self.config.differences, self.config.basis)
        super().__init__(taylor if family is None else family)

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        return layout.branches()

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self.config.check_steps(run.num_steps)

    def left_out(self, step: int) -> Collection[Part]:
        return () if self.config.schedule.is_full(step, self.run.num_steps) else self.watched
