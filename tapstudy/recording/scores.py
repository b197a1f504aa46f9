"""Proxy loss and true error of every predictor along the exact trajectory (teacher-forced)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.handle import apply_policy
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction, RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.tap import TAPPolicy


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


class TeacherForcedScores:
    """A listener: shows a TAP policy the full steps of its schedule, and at the others scores its predictions.

    Keeps, per skip step, (batch, token, predictor) proxy losses and true errors and (batch, token) choices.
    """

    def __init__(self, config: TAPConfig) -> None:
        self.policy = TAPPolicy(config)
        self.steps: list[int] = []
        self.distances: list[int] = []
        self.distinct: list[np.ndarray[Any, Any]] = []
        self.proxy_loss: list[np.ndarray[Any, Any]] = []
        self.true_error: list[np.ndarray[Any, Any]] = []
        self.choice: list[np.ndarray[Any, Any]] = []
        self.grid: tuple[int, int, int] | None = None

    def __call__(self, event: StepEvent) -> None:
        assert event.residual is not None
        policy = self.policy
        if event.step == 0:
            self.grid = event.grid
            policy.begin(RunInfo(grid=event.grid))
        if policy.wants_full(event.step):
            policy.observe(event.step, event.probe, event.residual)
            return
        prediction = policy.predict(event.step, event.probe)
        scores = score_step(policy, event.step, prediction, event.residual)
        assert scores.proxy_loss is not None
        assert scores.choice is not None
        self.steps.append(event.step)
        self.distances.append(scores.distance)
        self.distinct.append(scores.distinct.numpy())
        self.proxy_loss.append(scores.proxy_loss.float().cpu().numpy())
        self.true_error.append(scores.true_error.float().cpu().numpy())
        self.choice.append(scores.choice.cpu().numpy())

    def dataset(self, branches: tuple[str, ...] = ("cond", "uncond")) -> xr.Dataset:
        """Dims sample, context, step, token, predictor; a batch of several branches is cut into contexts."""
        assert self.grid is not None
        stacked = {
            name: _by_context(np.stack(values, axis=1), len(branches))
            for name, values in (
                ("proxy_loss", self.proxy_loss),
                ("true_error", self.true_error),
                ("choice", self.choice),
            )
        }
        dims = ("sample", "context", "step", "token", "predictor")
        _, rows, columns = self.grid
        token = np.arange(rows * columns)
        return xr.Dataset(
            {
                "proxy_loss": (
                    dims,
                    stacked["proxy_loss"],
                    {"long_name": f"{self.policy.config.distance} distance of predicted probe", "units": "1"},
                ),
                "true_error": (
                    dims,
                    stacked["true_error"],
                    {"long_name": "relative error of predicted residual", "units": "1"},
                ),
                "choice": (dims[:-1], stacked["choice"], {"long_name": "chosen predictor", "units": "1"}),
                "is_distinct": (
                    ("step", "predictor"),
                    np.stack(self.distinct),
                    {"long_name": "first of its like at this step", "units": "1"},
                ),
            },
            coords={
                "step": self.steps,
                "context": list(branches),
                "distance": ("step", self.distances, {"long_name": "steps since the last anchor", "units": "1"}),
                "row": ("token", token // columns),
                "col": ("token", token % columns),
                "order": ("predictor", [label.order for label in self.policy.labels]),
                "shift": ("predictor", [label.shift for label in self.policy.labels]),
            },
        )


def teacher_forced_scores(pipe: Any, call: dict[str, Any], *, config: TAPConfig, seed: int = 0) -> xr.Dataset:
    """Run `pipe(**call)` in full and score TAP's family along the way.

    Args:
        pipe: a flow-matching pipeline that takes `callback_on_step_end`, such as the embedded ones.
        call: its arguments but the generator.

    Returns:
        The dataset of `TeacherForcedScores`, with `clean_image` (sample, anchor, y, x) in [0, 1]: the clean image that
        the model expects at each full step of the schedule but the first, x_t - sigma v.
    """
    scores = TeacherForcedScores(config)
    policy = FullPolicy(residual=config.residual, probe_depth=config.probe_depth, needs_probe=True)
    states: list[torch.Tensor] = []

    def keep(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        states.append(tensors["latents"][:, 0].clone())  # (B, H, W), after the step
        return {}

    with apply_policy(pipe, policy) as handle:
        handle.listen(scores)
        pipe(**call, generator=torch.Generator().manual_seed(seed), callback_on_step_end=keep)
    sigmas = pipe.scheduler.sigmas
    anchors = [step for step in range(1, len(states)) if scores.policy.wants_full(step)]
    clean = [
        states[i - 1] - sigmas[i] * (states[i] - states[i - 1]) / (sigmas[i + 1] - sigmas[i]) for i in anchors
    ]  # each (B, H, W)
    images = (torch.stack(clean, dim=1) / 2 + 0.5).clamp(0, 1).numpy()
    attrs = {"long_name": "expected clean image", "units": "1"}
    return (
        scores.dataset()
        .assign(clean_image=(("sample", "anchor", "y", "x"), images, attrs))
        .assign_coords(anchor=anchors)
    )


def _by_context(values: np.ndarray[Any, Any], branches: int) -> np.ndarray[Any, Any]:
    """(branches * sample, ...) -> (sample, branches, ...)."""
    return values.reshape(branches, -1, *values.shape[1:]).swapaxes(0, 1)
