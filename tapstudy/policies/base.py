"""The contract between a policy and the instrument that runs a model under it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Self

from torch import Tensor

from tapstudy.predictors.family import Label

ResidualSite = Literal["hidden", "latent"]


@dataclass(frozen=True)
class RunInfo:
    """What is known when a trajectory starts.

    Attributes:
        num_steps: number of sampling steps, None when nobody could tell.
        grid: frames, rows and columns of the tokens, None when unknown.
    """

    num_steps: int | None = None
    grid: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Prediction:
    """What a policy puts in place of a skipped pass.

    Attributes:
        residual: predicted residual, of the shape of the observed ones.
        choice: index into the policy's labels, (batch, token), or None.
        proxy_loss: loss of every labelled predictor, (batch, token, predictor), or None.
    """

    residual: Tensor
    choice: Tensor | None = None
    proxy_loss: Tensor | None = None


class Policy(ABC):
    """Decides when to run in full and predicts the rest. One object serves one context of one transformer.

    The loop is: `begin` once, then for every step `wants_full(step)` followed by `observe` (a full step) or `predict`
    (a skip step). Questions (`wants_full`, `predict`) change nothing; the step is always passed in.

    Attributes:
        labels: names of the predictors that `Prediction.choice` indexes.
        residual_site: where the residual lives: `hidden` (input of the tail norm minus input of the first block) or
            `latent` (model output minus model input).
        probe_depth: block whose modulated input is the probe.
        needs_probe: whether `observe` and `predict` read the probe; without it no block runs at a skip step.
        needs_truth: whether `predict` reads the true residual. The instrument then runs a shadow full pass at every
            skip step: such a policy saves nothing and serves as a yardstick.
    """

    labels: tuple[Label, ...] = ()
    residual_site: ResidualSite = "hidden"
    probe_depth: int = 0
    needs_probe: bool = False
    needs_truth: bool = False

    def fresh(self) -> Self:
        """A copy that has seen nothing, for another context. Call it on a policy that has itself seen nothing."""
        return copy.deepcopy(self)

    def begin(self, run: RunInfo) -> None:
        """A trajectory starts: forget the last one."""
        del run

    @abstractmethod
    def wants_full(self, step: int) -> bool:
        """Whether the model must run in full at `step`."""

    @abstractmethod
    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        """Take in a full step: probe (batch, token, channel) if `needs_probe`, and residual."""

    @abstractmethod
    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        """Predict the residual at a skip step from the probe, and from the true residual if `needs_truth`."""

    @property
    def cache_bytes(self) -> int:
        """Memory held by the history."""
        return 0
