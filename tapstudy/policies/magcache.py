"""Run MagCache: a schedule from how the residual's magnitude changes by step (arXiv 2506.09045, NeurIPS 2025)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.policies.base import CachePolicy, Prediction, RunInfo


class MagCachePolicy(CachePolicy):
    """Reuse the residual; the full steps follow from a calibrated curve and do not depend on the input.

    From step int(retention * T + 0.5) on: rho is the product of the ratios gamma since the last full step, and
    |1 - rho| is added up over the steps skipped since. A step is skipped while that sum is at most `threshold` and no
    more than `max_skips` are skipped in a row. The ratios never scale the residual. No last step is forced. (The
    published FLUX script also keeps one hand-picked step.)

    Cost of a skip step: nothing beside embedding and tail. Memory: one residual per context.

    Args:
        ratios: gamma_0 = 1, gamma_1, ..: see `magnitude_ratios`. Taken at the nearest point when a run has another
            number of steps; without a known number, a run is as long as the curve and then runs in full. Of a run that
            begins in the middle, or that two transformers share, it is the part of the curve at the steps seen.
        threshold, max_skips, retention: published for FLUX 0.24, 5, 0.1; for HunyuanVideo 0.24, 6, 0.2; diffusers'
            defaults are the ones here.

    Raises:
        ValueError: an empty curve.
    """

    def __init__(
        self, ratios: Sequence[float], *, threshold: float = 0.06, max_skips: int = 3, retention: float = 0.2
    ) -> None:
        if len(ratios) == 0:
            raise ValueError("MagCachePolicy: no ratios; magnitude_ratios(residuals of a full run) gives them")
        super().__init__(Anchors(1))
        self.ratios, self.threshold = tuple(float(ratio) for ratio in ratios), threshold
        self.max_skips, self.retention = max_skips, retention
        self.begin(self.run)

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        num_steps = run.num_steps or len(self.ratios)
        curve = resampled(self.ratios, max(run.total or num_steps, run.first + num_steps))
        seen = curve[run.first : run.first + num_steps]
        self.skip_steps = magnitude_skips(seen, self.threshold, max_skips=self.max_skips, retention=self.retention)

    def wants_full(self, step: int) -> bool:
        return step not in self.skip_steps

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        return Prediction(self.anchors.residuals[0])


def magnitude_skips(ratios: Sequence[float], threshold: float, *, max_skips: int, retention: float) -> frozenset[int]:
    """List the steps that MagCache skips on the curve `ratios`, one per step. Step 0 always runs in full.

    Sums are in float32, so that one that meets the threshold falls on the same side as in diffusers.
    """
    skips: set[int] = set()
    curve = torch.tensor(ratios, dtype=torch.float32)
    start, one = int(retention * len(ratios) + 0.5), curve.new_ones(())
    rho, total, count = one, one - one, 0
    for step in range(start, len(ratios)):
        rho, count = rho * curve[step], count + 1
        total = total + abs(1.0 - rho)
        if step > 0 and total <= threshold and count <= max_skips:
            skips.add(step)
        else:
            rho, total, count = one, one - one, 0
    return frozenset(skips)


def resampled(ratios: Sequence[float], num_steps: int) -> tuple[float, ...]:
    """Take the curve at `num_steps` even points, nearest neighbour (halves to even, in float32 as in diffusers)."""
    if num_steps == 1:
        return (ratios[-1],)
    scale = (len(ratios) - 1) / (num_steps - 1)
    nearest = torch.round(torch.arange(num_steps, dtype=torch.float32) * scale).long()
    return tuple(ratios[index] for index in nearest.tolist())


def magnitude_ratios(residuals: Iterable[Tensor]) -> tuple[float, ...]:
    """Calibrate: average |r_i| / |r_(i-1)|, norms over channels, over batch and tokens; 1 for the first step.

    Args:
        residuals: of every step of one full run, in order, (batch, token, channel) each. A step's tensor may be freed
            when the next but one is drawn.
    """
    ratios: list[float] = []
    before: Tensor | None = None
    for residual in residuals:
        norm = torch.linalg.vector_norm(residual.detach(), dim=-1, dtype=torch.float64)  # (B, N)
        ratios.append(1.0 if before is None else float((norm / (before + 1e-8)).mean()))
        before = norm
    return tuple(ratios)
