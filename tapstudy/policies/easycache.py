"""Run EasyCache: the model's own rate of change says how far the input may move before a full step."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.checks import check_integer, check_least
from tapstudy.core.scoring import wide_dtype
from tapstudy.policies.base import Prediction, ProbeKind, ResidualSite, RunInfo
from tapstudy.policies.caching import ChangePolicy


class EasyCachePolicy(ChangePolicy):
    """Reuse the output less the input, until the change that is expected of the output has become too large in sum.

    With x_i the model's input and v_i its output at full steps, k = mean |v_i - v_a| / mean |x_i - x_(i-1)| is taken at
    every full step, a being the full step before. A step is expected to change the output by
    k mean |x_i - x_(i-1)| / mean |v_a|, which is added up since the last full step; it is skipped while the sum is
    below `threshold`. The first `warmup_steps` and the last, where it is known, run in full.

    Source: arXiv 2507.02860, in the form of its released code. (After a skip, k compares outputs that are several steps
    apart with inputs one step apart, as there.) Cost of a skip step: nothing of the model. Memory: three latents.

    Args:
        threshold: published: 0.05 for Wan, 0.025 for HunyuanVideo.
        warmup_steps: 10 of 50 are published; at least 2.

    Raises:
        TypeError, ValueError: settings out of range.
    """

    probe_kind: ProbeKind = "latent"
    residual_site: ResidualSite = "latent"

    def __init__(self, threshold: float = 0.05, *, warmup_steps: int = 10) -> None:
        check_least("EasyCachePolicy: threshold", threshold, 0)
        check_integer("EasyCachePolicy: warmup_steps", warmup_steps, 2)
        super().__init__(Anchors(1), threshold)
        self.warmup_steps = warmup_steps
        self._forget()

    def _forget(self) -> None:
        self._output: Tensor | None = None
        self._rate: Tensor | float = float("inf")  # it and the scale stay on the device
        self._scale: Tensor | float = 1.0

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self._forget()

    def wants_full(self, step: int) -> bool:
        return step < self.warmup_steps or super().wants_full(step)

    def change(self, probe: Tensor, before: Tensor) -> Tensor:
        """Return the change of the output that is expected of such a change of the input."""
        return self._rate * _size(probe - before) / self._scale

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        output = residual + probe if residual.shape == probe.shape else residual
        if self._output is not None and self.before is not None:
            self._rate = _size(output - self._output) / _size(probe - self.before)
            self._rate = self._rate.nan_to_num(nan=torch.inf, posinf=torch.inf)  # of an input that stood still
        size = _size(output)
        self._output, self._scale = output, torch.where(size == 0, torch.ones_like(size), size)
        super().observe(step, probe, residual)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        return Prediction(self.anchors.residuals[0])

    @property
    def cache_bytes(self) -> int:
        return super().cache_bytes + (0 if self._output is None else self._output.nbytes)


def _size(features: Tensor) -> Tensor:
    """Compute the mean of absolute values, in float64 where the device has it."""
    return features.abs().mean().to(wide_dtype(features.device))
