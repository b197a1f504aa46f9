"""Never skip: the reference, and what recording along the exact trajectory runs under."""

from __future__ import annotations

from torch import Tensor

from tapstudy.policies.base import Policy, Prediction, ResidualSite


class FullPolicy(Policy):
    """Run every step in full."""

    def __init__(self, *, residual: ResidualSite = "hidden", probe_depth: int = 0, needs_probe: bool = False) -> None:
        self.residual_site, self.probe_depth, self.needs_probe = residual, probe_depth, needs_probe

    def wants_full(self, step: int) -> bool:
        return True

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        pass

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        raise RuntimeError(f"FullPolicy was asked to predict step {step}: it never skips")
