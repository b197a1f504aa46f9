"""Run TeaCache: reuse the residual until the probe has changed enough in sum (arXiv 2411.19108, CVPR 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.change import relative_change
from tapstudy.policies.base import Prediction
from tapstudy.policies.caching import ChangePolicy

# Published for FLUX.1-dev, highest power first.
FLUX_COEFFICIENTS = (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861)


class TeaCachePolicy(ChangePolicy):
    """Reuse the residual, on a schedule that follows the probe h (first block's modulated input).

    At every step the rescaled change p(mean |h_i - h_(i-1)| / mean |h_(i-1)|), against the step before, full or not,
    is added up. While the sum is below `threshold` the step is skipped; otherwise it runs in full and the sum starts
    again. The first step runs in full, and so does the last where the number of steps is known.

    Cost of a skip step: the probe, and a pass over it. Memory: one probe and one residual per context. Differs from the
    published code in that one decision is made per context (guidance branch) in every model, as there for Wan.

    Args:
        threshold: published for FLUX: 0.25, 0.4, 0.6 and 0.8, for about 1.5x to 2.25x at 28 steps.
        coefficients: of the polynomial p, highest power first, fitted for one model: see `rescaling_coefficients`.
            The default leaves the changes as they are, which is no calibration at all.

    Raises:
        ValueError: a threshold below 0, or no coefficients.
    """

    def __init__(self, threshold: float = 0.25, *, coefficients: Sequence[float] = (1.0, 0.0)) -> None:
        if threshold < 0 or not coefficients:
            raise ValueError(
                f"TeaCachePolicy: threshold must be at least 0 and coefficients not empty, got {threshold} and "
                f"{coefficients}"
            )
        super().__init__(Anchors(1), threshold)
        self.coefficients = tuple(coefficients)

    def change(self, probe: Tensor, before: Tensor) -> Tensor:
        """Rescale the relative change."""
        change = relative_change(probe, before)
        rescaled = torch.zeros_like(change)
        for coefficient in self.coefficients:  # Horner
            rescaled = rescaled * change + coefficient
        return rescaled

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        return Prediction(self.anchors.residuals[0])


def rescaling_coefficients(probe_changes: Tensor, output_changes: Tensor, *, degree: int = 4) -> tuple[float, ...]:
    """Fit a polynomial from relative changes of the probe to those of the model's output, highest power first.

    Args:
        probe_changes, output_changes: mean |now - before| / mean |before| between consecutive steps of full runs, in
            any shape (say sample by step).

    Raises:
        ValueError: shapes that differ, or no more points than the degree.
    """
    if probe_changes.shape != output_changes.shape or probe_changes.numel() <= degree:
        raise ValueError(
            f"a polynomial of degree {degree} needs more than {degree} pairs of changes, got {probe_changes.numel()} "
            f"and {output_changes.numel()}"
        )
    powers = torch.vander(probe_changes.flatten().double(), degree + 1)  # (M, degree + 1)
    scale = powers.abs().amax(dim=0)  # columns differ by orders of magnitude
    fitted = torch.linalg.lstsq(powers / scale, output_changes.flatten().double()[:, None]).solution[:, 0]
    return tuple((fitted / scale).tolist())
