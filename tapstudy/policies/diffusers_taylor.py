"""Run TaylorSeer with the schedule of diffusers (`TaylorSeerCacheConfig`), which is not the paper's."""

from __future__ import annotations

from tapstudy.policies.base import ResidualSite, RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy


class DiffusersTaylorPolicy(FixedPolicy):
    """Extrapolate the model's output; run in full at i < before, (i - before - 1) mod interval = 0, and i >= after.

    With diffusers' defaults that is `FFF.F....F....F..`: the fourth step is predicted and the fifth runs in full. The
    paper's schedule, S(N, w), is `FixedPolicy(order)`, and order 0 on it is FORA's. Differences are formed at every
    full step, warm-up included, in both.

    On the model's output (the default here) this is diffusers' `use_lite_mode=True`; `residual="tail"`, the input of
    the tail, is the paper's TaylorSeer-Lite. TaylorSeer proper caches the modules inside the blocks, whose gates still
    run at a skip step: no policy on the residual can reproduce that.

    Args:
        order: `max_order`.
        interval, before, after: `cache_interval`, `disable_cache_before_step`, `disable_cache_after_step`.
    """

    def __init__(
        self,
        order: int = 1,
        *,
        interval: int = 5,
        before: int = 3,
        after: int | None = None,
        residual: ResidualSite = "output",
    ) -> None:
        super().__init__(order, config=TAPConfig(interval=interval, warmup_steps=before, residual=residual))
        self.interval, self.before, self.after = interval, before, after
        self.begin(RunInfo())

    def wants_full(self, step: int) -> bool:
        return (
            step < self.before
            or (step - self.before - 1) % self.interval == 0
            or (self.after is not None and step >= self.after)
        )
