"""Watch how much the probe changes, as policies do that skip while it hardly does."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.policies.base import CachePolicy, Prediction, RunInfo


class ChangePolicy(CachePolicy):
    """Skip while the changes of the probe, added up since the last full step, stay below a threshold.

    Steps up to int(retention * T), and the last, run in full where T is known; the first does in any case.

    Args:
        anchors: an empty history.
        threshold: of the sum.
        retention: share of the steps at the beginning.
    """

    needs_probe = True
    decides_by_probe = True

    def __init__(self, anchors: Anchors, threshold: float, retention: float = 0.0) -> None:
        super().__init__(anchors)
        self.threshold, self.retention = threshold, retention
        self.before: Tensor | None = None  # probe of the step before, full or not
        self.total: Tensor | float = 0.0  # stays on the device

    @abstractmethod
    def change(self, probe: Tensor, before: Tensor) -> Tensor:
        """Measure how much the probe has changed since the step before, as one number on its device."""

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self.before, self.total = None, 0.0

    def wants_full(self, step: int) -> bool:
        count = self.run.num_steps
        return self.before is None or (count is not None and (step <= int(self.retention * count) or step == count - 1))

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        return not bool(self.total_with(probe) < self.threshold)

    def total_with(self, probe: Tensor) -> Tensor:
        """Add the change to `probe` to the sum."""
        assert self.before is not None
        return self.total + self.change(probe, self.before)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        super().observe(step, probe, residual)
        self.before, self.total = probe.detach().clone(), 0.0

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        assert probe is not None
        self.before, self.total = probe.detach().clone(), self.total_with(probe)

    @property
    def cache_bytes(self) -> int:
        return super().cache_bytes + (0 if self.before is None else self.before.nbytes)
