"""Run First-Block Cache: reuse what the other blocks add, unless the first block's residual has changed."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.change import relative_change
from tapstudy.core.checks import check_least
from tapstudy.policies.base import CachePolicy, Prediction, ProbeKind


class FirstBlockPolicy(CachePolicy):
    """Run the first block at every step and compare its residual b with that of the last full step, a_0.

    Full if mean |b_i - b_(a_0)| / mean |b_(a_0)| > threshold. The comparison is with the last full step, not with the
    step before, and nothing is added up. A skipped step takes the first block's output and adds what the other blocks
    added at a_0, so in terms of the whole residual r: r_i = b_i + (r_(a_0) - b_(a_0)).

    Source: ParaAttention; diffusers' FirstBlockCache, whose default threshold this is. Cost of a skip step: the first
    block, 1/L of a full step, and a pass over its output. Memory: two hidden states per context.

    Args:
        warmup_steps: the first so many steps run in full. cache-dit's DBCache with Fn_compute_blocks=1 and no
            calibrator is this policy with its max_warmup_steps.

    Raises:
        ValueError: a threshold below 0.
    """

    needs_probe = True
    decides_by_probe = True
    probe_kind: ProbeKind = "stream"
    probe_depth = 1

    def __init__(self, threshold: float = 0.05, *, warmup_steps: int = 1) -> None:
        check_least("FirstBlockPolicy: threshold", threshold, 0)
        super().__init__(Anchors(1))  # the first block's residual, and that of the blocks behind it
        self.threshold, self.warmup_steps = threshold, warmup_steps

    def wants_full(self, step: int) -> bool:
        return len(self.anchors) == 0 or step < self.warmup_steps

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        return bool(relative_change(_first_residual(probe), self.anchors.probes[0]) > self.threshold)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        first = _first_residual(probe)
        self.anchors.push(step, first, residual - first)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        return Prediction(_first_residual(probe) + self.anchors.residuals[0])


def _first_residual(probe: Tensor) -> Tensor:
    start, first_output = probe.detach()  # (B, N, D) each
    return first_output - start
