"""Run DBCache: the first and the last blocks run at every step, those between when the first have changed."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from tapstudy.core.change import relative_change
from tapstudy.core.checks import check_integer, check_least
from tapstudy.policies.base import ProbeKind, RunInfo
from tapstudy.policies.decision import Decision, Layout, Part
from tapstudy.policies.parts import PartsPolicy
from tapstudy.predictors.family import Family
from tapstudy.predictors.taylor import TaylorFamily


class DBCachePolicy(PartsPolicy):
    """Run the first F and the last B blocks at every step, and the middle where the residual b of the first changed.

    Full if mean |b_i - b_(a_0)| / mean |b_(a_0)| > threshold, against the last full step a_0. Else the middle gives its
    residual at a_0, of both streams of tokens, or with an order the Taylor forecast of it over full steps.

    Source: cache-dit's DBCache, whose settings these are (Fn_compute_blocks, Bn_compute_blocks,
    residual_diff_threshold, max_warmup_steps, max_continuous_cached_steps), without those of its settings that are off
    by default. Cost of a skip step: F + B of the L blocks. Memory: order + 1 residuals of the middle per context, and
    one of the first blocks.

    Args:
        threshold: 0.08 is cache-dit's.
        first, last: F, at least 1, and B.
        warmup_steps: the first so many steps run in full.
        max_skips: so many steps in a row at most; None: any number.
        order: of the Taylor predictor; 0 reuses.

    Raises:
        ValueError: settings out of range; at the beginning of a run, fewer blocks than F + B + 1.
    """

    needs_probe = True
    decides_by_probe = True
    probe_kind: ProbeKind = "stream"

    def __init__(
        self,
        threshold: float = 0.08,
        *,
        first: int = 8,
        last: int = 0,
        warmup_steps: int = 8,
        max_skips: int | None = None,
        order: int = 0,
        family: Family | None = None,
    ) -> None:
        check_least("DBCachePolicy: threshold", threshold, 0)
        check_integer("DBCachePolicy: first", first, 1)
        check_integer("DBCachePolicy: last", last, 0)
        check_integer("DBCachePolicy: warmup_steps", warmup_steps, 0)
        if max_skips is not None:
            check_integer("DBCachePolicy: max_skips", max_skips, 0)
        super().__init__(TaylorFamily((order,), (0,)) if family is None else family)
        self.threshold, self.first, self.last, self.probe_depth = threshold, first, last, first
        self.warmup_steps, self.max_skips = warmup_steps, max_skips
        self._residual: Tensor | None = None  # of the first blocks, at the last full step
        self._skips = 0  # since then

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self._residual, self._skips = None, 0

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        if self.first + self.last >= len(layout):
            raise ValueError(
                f"DBCachePolicy: first={self.first} and last={self.last} leave no block between them: the model has "
                f"{len(layout)}"
            )
        return layout.groups(self.first, len(layout) - self.last)

    def left_out(self, step: int) -> Collection[Part]:
        return self.watched

    def wants_full(self, step: int) -> bool:
        too_many = self.max_skips is not None and self._skips >= self.max_skips
        return self._residual is None or step < self.warmup_steps or too_many

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        assert self._residual is not None
        return bool(relative_change(_added(probe), self._residual) > self.threshold)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        self._residual, self._skips = _added(probe), 0

    def ran(self, step: int, decision: Decision, residual: Tensor | None) -> None:
        self._skips += 1

    @property
    def cache_bytes(self) -> int:
        return super().cache_bytes + (0 if self._residual is None else self._residual.nbytes)


def _added(probe: Tensor) -> Tensor:
    """Return what the first blocks add, (batch, token, channel), from (2, batch, token, channel)."""
    start, output = probe.detach()
    return output - start
