"""Run SeaCache: skip until the input, with the noise filtered out, has changed enough (arXiv 2602.18993)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.checks import check_between, check_integer, check_least
from tapstudy.core.scoring import assemble, wide_dtype
from tapstudy.core.weights import extrapolation_row
from tapstudy.policies.base import Prediction, ProbeKind, RunInfo
from tapstudy.policies.caching import ChangePolicy

_TINY = 1e-16  # as in diffusers, which keeps the filter finite at frequency 0


class SeaCachePolicy(ChangePolicy):
    """Compare filtered inputs y of neighbouring steps, and extrapolate the residual through the last two full steps.

    At noise level s the filter has along every axis of the token grid the gain (1 - s) p / ((1 - s)^2 p + s^2), where
    p = 1 / |frequency|^power is the power of clean images, and is scaled to mean 1. The changes
    mean |y_i - y_(i-1)| / mean |y_(i-1)| are added up since the last full step; a step is skipped while the sum is
    below `threshold`. The first `warmup_steps` and, where it is known, the last run in full.

    Source: the rule of diffusers' SeaCache. Approximate: its filter is over pixels of the latent, here over tokens,
    for every value of a patch. Cost of a skip step: two Fourier transforms of the latent. Memory: two latents, and
    order + 1 residuals.

    Args:
        sigmas: noise level of every step of the run, of a model of flow matching.
        threshold: 0.25 is diffusers'.
        order: of the extrapolation, 0 or 1.
        max_skips: steps in a row; None: any number.
        power: 3 is diffusers', for videos.

    Raises:
        TypeError, ValueError: settings out of range; at the beginning of a run, fewer levels than steps.
    """

    probe_kind: ProbeKind = "latent"

    def __init__(
        self,
        sigmas: Sequence[float],
        threshold: float = 0.25,
        *,
        order: int = 1,
        max_skips: int | None = 2,
        warmup_steps: int = 1,
        power: float = 3.0,
    ) -> None:
        check_least("SeaCachePolicy: threshold", threshold, 0)
        check_integer("SeaCachePolicy: order", order, 0)
        check_integer("SeaCachePolicy: warmup_steps", warmup_steps, 1)
        for sigma in sigmas:
            check_between("SeaCachePolicy: sigmas", sigma, 0, 1)
        super().__init__(Anchors(order + 1), threshold)
        self.sigmas, self.order, self.max_skips = tuple(sigmas), order, max_skips
        self.warmup_steps, self.power = warmup_steps, power
        self._skips = 0

    def begin(self, run: RunInfo) -> None:
        if run.num_steps is not None and run.num_steps > len(self.sigmas):
            raise ValueError(
                f"SeaCachePolicy has noise levels for {len(self.sigmas)} steps, and this run has {run.num_steps}"
            )
        super().begin(run)
        self._skips = 0

    def wants_full(self, step: int) -> bool:
        too_many = self.max_skips is not None and self._skips >= self.max_skips
        return step < self.warmup_steps or too_many or super().wants_full(step)

    def wants_full_given(self, step: int, probe: Tensor) -> bool:
        return super().wants_full_given(step, self._filtered(step, probe))

    def change(self, probe: Tensor, before: Tensor) -> Tensor:
        """Return mean |now - before| / mean |before| of what is filtered already."""
        return ((probe - before).abs().mean() / (before.abs().mean() + _TINY)).to(wide_dtype(probe.device))

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        super().observe(step, self._filtered(step, probe), residual)
        self._skips = 0

    def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
        assert probe is not None
        super().skipped(step, self._filtered(step, probe), prediction)
        self._skips += 1

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        steps, residuals = self.anchors.steps, self.anchors.residuals
        row = extrapolation_row(steps, min(self.order, len(steps) - 1), step - steps[0])
        choice = torch.zeros(residuals[0].shape[:2], dtype=torch.int64, device=residuals[0].device)  # (B, N)
        return Prediction(assemble(residuals, torch.tensor([row], dtype=torch.float64), choice))

    def _filtered(self, step: int, latent: Tensor) -> Tensor:
        grid = self.run.grid or (1, 1, latent.shape[1])
        return sea_filtered(latent, grid, self.sigmas[step], power=self.power)


def sea_filtered(latent: Tensor, grid: tuple[int, int, int], sigma: float, *, power: float = 3.0) -> Tensor:
    """Filter the noise out of a latent in patches, (batch, token, channel), float32.

    Args:
        grid: frames, rows and columns of the tokens.
        sigma: noise level.
        power: exponent of the power of clean images over frequency.
    """
    sigma = min(max(sigma, 1e-6), 1 - 1e-6)
    on_grid = latent.float().view(len(latent), *grid, -1)
    gain = torch.ones((), device=latent.device)
    for axis, length in enumerate(grid):
        frequencies = torch.fft.fftfreq(length, device=latent.device).abs()
        clean = 1 / (frequencies**power + _TINY)
        own = (1 - sigma) * clean / ((1 - sigma) ** 2 * clean + sigma**2 + _TINY)
        gain = gain * own.view([-1 if place == axis else 1 for place in range(4)])
    spectrum = torch.fft.fftn(on_grid, dim=(1, 2, 3)) * (gain / gain.mean())
    return torch.fft.ifftn(spectrum, dim=(1, 2, 3)).real.reshape(latent.shape)
