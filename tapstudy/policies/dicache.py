"""Run DiCache: a shallow probe says when to skip and how far along the residuals (arXiv 2508.17356, ICLR 2026)."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.change import relative_change
from tapstudy.policies.base import Prediction, ProbeKind
from tapstudy.policies.caching import ChangePolicy

ErrorKind = Literal["output", "difference"]


class DiCachePolicy(ChangePolicy):
    """Run the first m blocks at every step; x is the hidden state entering them, y what leaves them, P = y - x.

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
        super().__init__(Anchors(2), threshold, retention)
        self.probe_depth, self.error, self.max_gamma = depth, error, max_gamma

    def change(self, probe: Tensor, before: Tensor) -> Tensor:
        """Measure the change of y, or by how much it differs from that of x."""
        change = relative_change(probe[1], before[1])
        return (change - relative_change(probe[0], before[0])).abs() if self.error == "difference" else change

    def kept(self, probe: Tensor | None) -> Tensor | None:
        """Take P = y - x."""
        assert probe is not None
        return probe[1] - probe[0]

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
