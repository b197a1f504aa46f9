"""Run ERTACache: a schedule found offline, and a fitted correction of what is reused (arXiv 2508.21091, ICLR 2026).

Approximate: written from descriptions of the method. The shape of the fitted constants was not found (here one pair per
step), nor which of two denominators the time scale has (an option), nor how the remaining time is normalised (here so
that the steps add up to the whole).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.policies.base import CachePolicy, Prediction, ProbeKind, ResidualSite

Rectification = Literal["sigmoid", "linear"]


@dataclass(frozen=True)
class ErtaCalibration:
    """Hold what is found on full runs.

    Attributes:
        full_steps: S; all prompts share it.
        lines: (K, B) of every other step.
        time_scales: phi of every other step, in [0, 1].
    """

    full_steps: frozenset[int]
    lines: Mapping[int, tuple[float, float]]
    time_scales: Mapping[int, float]


class ERTACachePolicy(CachePolicy):
    """Reuse the residual of the last full step, v~ = x + r, and take the expected error off: v~ - eps(v~).

    eps = sigmoid(K v~ + B), or the line it was fitted as, (K v~ + B) / 4 + 1/2; K and B belong to the step. Steps
    beyond the calibrated ones run in full. The shorter steps of the method are the sampler's business: pass
    `adjusted_times` to the pipeline as its sigmas (1 - time).

    Cost of a skip step: nothing, the model does not run. Memory: one residual in latent space per context.

    Args:
        calibration: see `calibrate_erta`.
        rectification: None leaves v~ as it is.

    Raises:
        ValueError: an unknown rectification, or a calibration without step 0.
    """

    residual_site: ResidualSite = "latent"
    probe_kind: ProbeKind = "latent"

    def __init__(self, calibration: ErtaCalibration, *, rectification: Rectification | None = "sigmoid") -> None:
        if rectification not in (None, *get_args(Rectification)) or 0 not in calibration.full_steps:
            raise ValueError(
                f"ERTACachePolicy: rectification must be None or one of {get_args(Rectification)} and step 0 a full "
                f"step, got {rectification!r} and {sorted(calibration.full_steps)}"
            )
        super().__init__(Anchors(1))
        self.calibration, self.rectification = calibration, rectification
        self.needs_probe = rectification is not None

    def wants_full(self, step: int) -> bool:
        return step not in self.calibration.lines

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        residual = self.anchors.residuals[0]
        if self.rectification is None:
            return Prediction(residual)
        assert probe is not None
        slope, offset = self.calibration.lines[step]
        line = slope * (probe.detach() + residual) + offset  # (B, N, C)
        error = torch.sigmoid(line) if self.rectification == "sigmoid" else line / 4 + 0.5
        return Prediction(residual - error)


def calibrate_erta(
    inputs: Sequence[Tensor],
    outputs: Sequence[Tensor],
    threshold: float,
    *,
    time_scale: Literal["change", "size"] = "change",
) -> ErtaCalibration:
    """Walk along full runs: reuse the residual r = v - x while |r_held - r|_1 / |r|_1 stays below `threshold`.

    At reused steps: phi = clip(1 - |v~ - v|_1 / d, 0, 1), d = |v_i - v_(i-1)|_1 ("change") or |v_i|_1 ("size"); and the
    least-squares line of eps = v~ - v on v~, written as the linear part of a sigmoid: K = 4 cov / var,
    B = 4 (mean eps - 1/2) - K mean v~.

    Args:
        inputs, outputs: latents x and model outputs v of every step, equal shapes.
    """
    full, lines, scales = {0}, {}, {}
    held = (outputs[0] - inputs[0]).double()
    for step in range(1, len(outputs)):
        x, v = inputs[step].double(), outputs[step].double()
        if not (held - (v - x)).abs().sum() / (v - x).abs().sum() < threshold:
            full.add(step)
            held = v - x
            continue
        reused = x + held
        error = reused - v
        centred = reused - reused.mean()
        slope = 4 * float((centred * error).sum() / centred.square().sum())
        lines[step] = slope, 4 * (float(error.mean()) - 0.5) - slope * float(reused.mean())
        size = (v - outputs[step - 1].double() if time_scale == "change" else v).abs().sum()
        scales[step] = float((1 - error.abs().sum() / size).nan_to_num(0.0).clamp(0, 1))
    return ErtaCalibration(frozenset(full), lines, scales)


def adjusted_times(num_steps: int, full_steps: Collection[int], time_scales: Mapping[int, float]) -> tuple[float, ...]:
    """Compute the times 0 = t_0 .. t_T = 1 of a sampler whose reused steps are shortened.

    Every step would take an equal share of the time that is left; a reused one takes phi times that. The last step
    takes all that is left.
    """
    times = [0.0]
    for step in range(num_steps):
        share = (1 - times[-1]) / (num_steps - step)
        scale = 1.0 if step in full_steps or step == num_steps - 1 else time_scales[step]
        times.append(times[-1] + scale * share)
    return (*times[:-1], 1.0)
