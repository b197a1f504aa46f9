"""Proxy loss and true error of every member of a family at a skip step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction


@dataclass(frozen=True)
class StepScores:
    """Every member of a family at one skip step.

    Attributes:
        distance: steps since the last anchor.
        distinct: whether no earlier member is identical at this distance, (predictor,).
        choice: (batch, token), int16, or None.
        proxy_loss: (batch, token, predictor), or None.
        true_error: |prediction - truth| / |truth| of the residual, (batch, token, predictor).
    """

    distance: int
    distinct: Tensor
    choice: Tensor | None
    proxy_loss: Tensor | None
    true_error: Tensor


def score_step(policy: AnchoredPolicy, step: int, prediction: Prediction, truth: Tensor) -> StepScores:
    """What `policy` predicts at a skip step beside the true residual (batch, token, channel)."""
    errors, distinct = policy.errors(step, truth)
    return StepScores(
        step - policy.anchors.steps[0],
        distinct,
        None if prediction.choice is None else prediction.choice.to(torch.int16),
        prediction.proxy_loss,
        errors,
    )
