"""Choose by a probe from which the noise is filtered. Beyond the paper.

The model's input is a x0 + sigma n: a Wiener filter, the linear filter of least squared error, keeps of every spatial
frequency what the clean image has there over what the noise adds. SeaCache (CVPR 2026) measures distances between steps
so; here predictors are ranked by what they make of the filtered input.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction, RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.shuffled import ShuffledPolicy
from tapstudy.policies.tap import TAPPolicy


class _Filtered(AnchoredPolicy):
    """Score on the filtered input of the model in place of the first block's.

    Args:
        power: of the clean image in patches, at every frequency of the token grid, (row, column, latent channel), from
            `clean_power`.
        sigmas: noise level of every step; the image has the weight 1 - sigma (flow matching).
        config: as of TAP; its probe depth is not used.

    Raises:
        ValueError: when a run begins, a token grid that is not that of `power`.
    """

    probe_kind = "latent"

    def __init__(self, power: Tensor, sigmas: Sequence[float], config: TAPConfig | None = None, **more: Any) -> None:
        super().__init__(config, **more)
        self.power, self.sigmas = power, tuple(sigmas)

    def begin(self, run: RunInfo) -> None:
        if run.grid is not None and tuple(run.grid) != (1, *self.power.shape[:2]):
            raise ValueError(
                f"{type(self).__name__} was fitted to a token grid of 1 x {self.power.shape[0]} x "
                f"{self.power.shape[1]}, but that of this run is {run.grid}"
            )
        super().begin(run)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        super().observe(step, wiener_filtered(probe, self.power, self.sigmas[step]), residual)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        filtered = wiener_filtered(probe, self.power, self.sigmas[step])
        return super().predict(step, filtered, truth)  # type: ignore[safe-super]


class WienerPolicy(_Filtered, TAPPolicy):
    """TAP with the filtered input as its probe. Arguments as of `_Filtered`: `power`, `sigmas`, `config`.

    Cost of a skip step over TAP: two Fourier transforms of the latent, less the first block's modulated input.
    """


class ShuffledWienerPolicy(_Filtered, ShuffledPolicy):
    """The control: tokens choose by the filtered input of other tokens. Arguments as of `WienerPolicy`, and `seed`."""


def wiener_filtered(latent: Tensor, power: Tensor, sigma: float) -> Tensor:
    """Estimate (1 - sigma) x0 from (1 - sigma) x0 + sigma n, (batch, token, channel), float32.

    Args:
        latent: the model's input in patches.
        power: of x0 at every frequency of the token grid, (row, column, channel).
        sigma: noise level.
    """
    rows, columns, channels = power.shape
    grid = latent.float().reshape(len(latent), rows, columns, channels)
    signal = (1 - sigma) ** 2 * onto(power, grid.device, grid.dtype)
    gain = signal / (signal + sigma**2).clamp(min=torch.finfo(torch.float32).tiny)
    spectrum = torch.fft.fft2(grid, dim=(1, 2), norm="ortho")
    return torch.fft.ifft2(spectrum * gain, dim=(1, 2), norm="ortho").real.reshape(latent.shape)


def clean_power(clean: Tensor, grid: tuple[int, int]) -> Tensor:
    """Measure the power of clean images in patches at every frequency, mean over images, (row, column, channel).

    Args:
        clean: (image, token, channel).
        grid: rows and columns of the tokens.
    """
    spectrum = torch.fft.fft2(clean.double().unflatten(1, grid), dim=(1, 2), norm="ortho")
    return spectrum.abs().square().mean(dim=0).float()
