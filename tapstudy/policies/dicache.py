"""DiCache: a shallow probe says when to skip and how far along the line of residuals (arXiv 2508.17356, ICLR 2026)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.change import relative_change
from tapstudy.policies.base import Policy, Prediction, ProbeKind, RunInfo

ErrorKind = Literal["output", "difference"]


class DiCachePolicy(Policy):
    """Runs the first m blocks at every step; x is the hidden state entering them, y what leaves them, P = y - x.

    When: d(y) = mean |y_i - y_(i-1)| / mean |y_(i-1)| against the step before, full or not (`error="output"`, the
    paper's delta_y), or |d(y) - d(x)| (`error="difference"`, delta_minus), is added up; the step is skipped while the
    sum is below `threshold`. Steps up to int(retention * T), and the last, run in full where T is known; the first does
    in any case.

    What: with residuals R and probe residuals P at the last two full steps a_0 and a_1,
    R_i = R_(a_1) + gamma (R_(a_0) - R_(a_1)), gamma = mean |P_i - P_(a_1)| / mean |P_(a_0) - P_(a_1)|, clipped to
    [1, `max_gamma`]; with one full step, R_(a_0). The clip is that of the published code, not of the paper.

    Cost of a skip step: m blocks, and passes over their output. Memory: six hidden states per context.

    Args:
        threshold: published for FLUX: 0.4 (retention 0.2, "output") or 0.08 (retention 0, "difference").
        depth: m.
        max_gamma: 1.5, for Wan 2.

    Raises:
        ValueError: an unknown `error`, or a depth below 1.
    """

    needs_probe = True
    decides_by_probe = True
    probe_kind: ProbeKind = "stream"

    def __init__(
        self,
        threshold: float = 0.4,
        *,
        depth: int = 1,
        retention: float = 0.2,
        error: ErrorKind = "output",
        max_gamma: float = 1.5,
    ) -> None:
        if error not in get_args(ErrorKind) or depth < 1:
            raise ValueError(
                f"DiCachePolicy: error must be one of {get_args(ErrorKind)} and depth at least 1, got {error!r} and "
                f"{depth}"
            )
        self.threshold, self.probe_depth, self.retention = threshold, depth, retention
        self.error, self.max_gamma = error, max_gamma
        self.anchors = Anchors(2)
        self.begin(RunInfo())

    def begin(self, run: RunInfo) -> None:
        self.run = run
        self.anchors.clear()
        self.before: Tensor | None = None  # x and y of the step before, (2, B, N, D)
        self.total = 0.0

    def wants_full(self, step: int) -> bool:
        if self.before is None:
            return True
        count = self.run.num_steps
        return count is not None and (step <= int(self.retention * count) or step == count - 1)

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        return not self.total_with(probe) < self.threshold

    def total_with(self, probe: Tensor) -> float:
        """The sum of changes, that to `probe` included."""
        assert self.before is not None
        change = relative_change(probe[1], self.before[1])
        if self.error == "difference":
            change = abs(change - relative_change(probe[0], self.before[0]))
        return self.total + change

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        self.anchors.push(step, probe[1] - probe[0], residual)
        self.before, self.total = probe.detach().clone(), 0.0

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        newest, *older = self.anchors.residuals
        if not older:
            return Prediction(newest)
        wide = torch.promote_types(probe.dtype, torch.float32)
        now, last, first = (part.detach().to(wide) for part in (probe[1] - probe[0], *self.anchors.probes))  # (B, N, D)
        gamma = (now - first).abs().mean() / (last - first).abs().mean()
        gamma = gamma.nan_to_num(1.0).clamp(1, self.max_gamma)
        return Prediction(older[0] + gamma * (newest - older[0]))

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        assert probe is not None
        self.before, self.total = probe.detach().clone(), self.total_with(probe)

    @property
    def cache_bytes(self) -> int:
        return self.anchors.nbytes + (0 if self.before is None else self.before.nbytes)
