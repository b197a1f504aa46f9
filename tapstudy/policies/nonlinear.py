"""Use predictors that no row of weights can stand for: one of them alone, or beside a family in TAP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from tapstudy.core.scoring import Distance, predictor_losses
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Candidates, Family, candidates
from tapstudy.predictors.nonlinear import NonlinearPredictor
from tapstudy.predictors.reuse import Reuse


class NonlinearPolicy(AnchoredPolicy):
    """Use one predictor for all tokens and steps, on the schedule of `config`. Needs no probe.

    Args:
        predictor: such as `DynamicModes()`.
        config: everything but the family.
    """

    def __init__(self, predictor: NonlinearPredictor, config: TAPConfig | None = None) -> None:
        super().__init__(config, family=Reuse())
        self.predictor = predictor
        self.labels = (predictor.label,)
        self.anchors = self.config.history.anchors(predictor.num_anchors)

    @property
    def family_text(self) -> str:
        return repr(self.predictor)

    @property
    def waits(self) -> int:
        return self.predictor.waits

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        residual = forecast_by(self, self.predictor, self.anchors.residuals, step=step)  # (B, N, D)
        return Prediction(residual, torch.zeros(residual.shape[:2], dtype=torch.int64, device=residual.device))

    def errors(self, step: int, truth: Tensor) -> tuple[Tensor, Tensor]:
        forecast = forecast_by(self, self.predictor, self.anchors.residuals, step=step)
        return loss_of(forecast, truth, "l2"), torch.ones(1, dtype=torch.bool)


class NonlinearTAPPolicy(AnchoredPolicy):
    """Run TAP with nonlinear predictors among the candidates.

    The linear ones are scored by the Gram matrix as ever; a nonlinear one predicts the probe, which is compared with
    the actual one. On equal losses linear candidates win. Cost over TAP: every nonlinear candidate predicts the probe
    for all tokens at every skip step, and the residual where a token chose it.

    Args:
        nonlinear: the further candidates, after those of the family.
        config: as for TAP.
        family: of the linear candidates; the configuration's by default.

    Raises:
        ValueError: no nonlinear predictor.
    """

    needs_probe = True

    def __init__(
        self, nonlinear: Sequence[NonlinearPredictor], config: TAPConfig | None = None, *, family: Family | None = None
    ) -> None:
        super().__init__(config, family=family)
        if not nonlinear:
            raise ValueError("NonlinearTAPPolicy: needs at least one nonlinear predictor; without any, use TAPPolicy")
        self.nonlinear = tuple(nonlinear)
        self.labels = (*self.family.labels, *(predictor.label for predictor in self.nonlinear))
        needed = max(self.family.num_anchors, *(predictor.num_anchors for predictor in self.nonlinear))
        self.anchors = self.config.history.anchors(needed)

    @property
    def family_text(self) -> str:
        return f"{self.family!r} + {self.nonlinear!r}"

    @property
    def waits(self) -> int:
        """Once to see which nonlinear ones were chosen; these predict the probe, and then the residual."""
        return 1 + 2 * sum(predictor.waits for predictor in self.nonlinear)

    def candidates(self, step: int) -> Candidates:
        """Find the linear candidates, with weight 0 on anchors that only nonlinear ones use."""
        found = candidates(self.family, self.anchors.steps[: self.family.num_anchors], step)
        missing = len(self.anchors) - found.weights.shape[1]
        return replace(found, weights=torch.nn.functional.pad(found.weights, (0, missing)))

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        config, anchors = self.config, self.anchors
        found = self.candidates(step)
        count = len(found.first)
        linear = self.losses(found, probe)  # (B, N, count)
        others = [
            loss_of(forecast_by(self, predictor, anchors.probes, step=step), probe, config.distance)
            for predictor in self.nonlinear
        ]  # (B, N, 1) each
        choice = self.select(torch.cat([linear, *others], dim=-1))  # (B, N)
        prediction = self.apply(found, choice.clamp(max=count - 1), linear)
        residual, labels, losses = prediction.residual, prediction.choice, prediction.proxy_loss
        assert labels is not None
        assert losses is not None
        taken_by = [choice == count + index for index in range(len(self.nonlinear))]  # (B, N) each
        used = torch.stack([taken.any() for taken in taken_by]).tolist()
        for index, (predictor, taken) in enumerate(zip(self.nonlinear, taken_by, strict=True)):
            if used[index]:
                forecast = forecast_by(self, predictor, anchors.residuals, step=step)  # (B, N, D)
                residual = torch.where(taken[..., None], forecast, residual)
                labels = torch.where(taken, len(self.family.labels) + index, labels)
        return Prediction(residual, labels, torch.cat([losses, *others], dim=-1))

    def errors(self, step: int, truth: Tensor) -> tuple[Tensor, Tensor]:
        linear, distinct = super().errors(step, truth)
        others = [
            loss_of(forecast_by(self, predictor, self.anchors.residuals, step=step), truth, "l2")
            for predictor in self.nonlinear
        ]
        return torch.cat([linear, *others], dim=-1), torch.cat([distinct, torch.ones(len(others), dtype=torch.bool)])


def forecast_by(
    policy: AnchoredPolicy, predictor: NonlinearPredictor, values: Sequence[Tensor], *, step: int
) -> Tensor:
    """Predict by what `predictor` makes of `values` at the policy's anchors, (batch, token, channel).

    Raises:
        ValueError: it gave another shape.
    """
    count = predictor.num_anchors
    found = predictor.predict(policy.anchors.steps[:count], values[:count], step, grid=policy.run.grid)
    if found.shape != values[0].shape:
        raise ValueError(
            f"{type(predictor).__name__}.predict at step {step} gave shape {tuple(found.shape)} for values of shape "
            f"{tuple(values[0].shape)}: it must keep (batch, token, channel)"
        )
    return found


def loss_of(prediction: Tensor, actual: Tensor, distance: Distance) -> Tensor:
    """Compute the distance of one prediction, (batch, token, channel), to the actual features, (batch, token, 1)."""
    return predictor_losses([prediction], actual, torch.ones(1, 1), distance=distance)
