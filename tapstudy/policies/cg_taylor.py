"""Run Confidence-Gated Taylor: skip while a Taylor forecast of the first block's output holds (arXiv 2508.02240)."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.change import relative_change
from tapstudy.core.scoring import assemble
from tapstudy.core.weights import extrapolation_row
from tapstudy.policies.base import CachePolicy, Prediction, ProbeKind, ResidualSite


class CGTaylorPolicy(CachePolicy):
    """Run the first block at every step; a good forecast of its output is taken to vouch for one of the tail.

    Both forecasts are TaylorSeer's, sum_j D_j k^j / j! over full steps, of the first block's output and of the input of
    the tail. The step is skipped if mean |forecast - output| / mean |output| of the first block is below `threshold`.
    Steps 0..`always_full`, and the last where the number of steps is known, run in full. A skipped step leaves both
    histories alone although its first block has run.

    Source: the formulas of the paper and of its released code. Cost of a skip step: the first block. Memory:
    max(order, first_order) + 1 anchors of two hidden states per context.

    Args:
        threshold: published: 0.008 to 0.014 for DiT, 0.03 or 0.13 for FLUX, 0.36 for Wan.
        order: of the forecast of the tail; 1 to 4.
        first_order: of that of the first block.
    """

    needs_probe = True
    decides_by_probe = True
    probe_kind: ProbeKind = "stream"
    probe_depth = 1
    residual_site: ResidualSite = "tail"

    def __init__(self, threshold: float = 0.01, *, order: int = 1, first_order: int = 1, always_full: int = 4) -> None:
        super().__init__(Anchors(max(order, first_order) + 1))
        self.threshold, self.order, self.first_order, self.always_full = threshold, order, first_order, always_full

    def wants_full(self, step: int) -> bool:
        forced = step <= self.always_full or step + 1 == self.run.num_steps
        return forced or len(self.anchors) == 0

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        output = probe[1].detach()
        forecast = self._forecast(self.anchors.probes, step, self.first_order)
        return not bool(relative_change(forecast, output) < self.threshold)

    def kept(self, probe: Tensor | None) -> Tensor | None:
        """Take the first block's output."""
        assert probe is not None
        return probe[1]

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        return Prediction(self._forecast(self.anchors.residuals, step, self.order))

    def _forecast(self, features: list[Tensor], step: int, order: int) -> Tensor:
        steps = self.anchors.steps
        row = extrapolation_row(steps, min(order, len(steps) - 1), step - steps[0])
        choice = torch.zeros(features[0].shape[:2], dtype=torch.int64, device=features[0].device)  # (B, N)
        return assemble(features, torch.tensor([row], dtype=torch.float64), choice)
