"""What the instrument knows about the run in progress: which trajectory, which context, which step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.clock import StepClock
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.full import FullPolicy


@dataclass
class ContextRun:
    """One context (guidance branch) of one transformer along one trajectory.

    Attributes:
        name: the pipeline's name for it, or a made-up one.
        policy: with its own history.
        key: the conditioning that tells this context apart when the pipeline gives no name.
        shape: of the latent input; a change empties the history.
        observed: whether the policy has seen a full step since its history was last emptied.
        kinds: "full", "skip" or "shadow", one per step so far.
        fail_opens: why steps ran in full although the policy wanted to skip.
        choices: how many tokens took each labelled predictor.
        cache_bytes: most memory its history has held.
        output_kind, output_shape: class and sample shape of the transformer's last output.
    """

    name: str
    policy: Policy = field(default_factory=FullPolicy)
    key: Any = None
    shape: torch.Size | None = None
    observed: bool = False
    kinds: list[str] = field(default_factory=list)
    fail_opens: Counter[str] = field(default_factory=Counter)
    clock: StepClock = field(default_factory=StepClock)
    choices: Tensor | None = None
    cache_bytes: int = 0
    output_kind: type[Any] = tuple
    output_shape: torch.Size = field(default_factory=torch.Size)

    @property
    def step(self) -> int:
        return len(self.kinds)

    def finish(self, kind: str, output_kind: type[Any], prediction: Prediction | None) -> None:
        """Book a completed step."""
        self.kinds.append(kind)
        self.output_kind = output_kind
        self.cache_bytes = max(self.cache_bytes, self.policy.cache_bytes)
        if prediction is None or prediction.choice is None:
            return
        choice = prediction.choice.reshape(-1)
        if self.choices is None:
            self.choices = torch.zeros(len(self.policy.labels), dtype=torch.int64, device=choice.device)
        self.choices.scatter_add_(0, choice, torch.ones_like(choice))


class TrajectoryWatch:
    """Tells whether a call of the transformer starts a new trajectory.

    With a scheduler: `set_timesteps` makes a new `timesteps` tensor, so another object there means another run, even
    after an exception. Without one: the timestep moved against its direction, or came back to the first value.
    """

    def __init__(self) -> None:
        self._timesteps: Tensor | None = None
        self.forget()

    def forget(self) -> None:
        self._first: float | None = None
        self._last: float | None = None
        self._direction = 0.0

    def starts(self, timestep: Tensor | float | None, scheduler: Any, calls: int) -> bool:
        """Whether this call, after `calls` calls of its context, is the first of a new run."""
        timesteps = getattr(scheduler, "timesteps", None)
        if isinstance(timesteps, Tensor) and getattr(scheduler, "num_inference_steps", None) is not None:
            new = timesteps is not self._timesteps or calls >= len(timesteps)
            self._timesteps = timesteps  # held, so that its address cannot be reused by the next run's tensor
            return new
        return self._restarted(timestep)

    def _restarted(self, timestep: Tensor | float | None) -> bool:
        if timestep is None:
            return False
        now = timestep_value(timestep)
        if self._first is None or self._last is None:
            self._first = self._last = now
            return True
        move = now - self._last
        restarted = (move != 0 and now == self._first) or move * self._direction < 0
        if restarted:
            self.forget()
            self._first = now
        elif move != 0:
            self._direction = move
        self._last = now
        return restarted


def timestep_value(timestep: Tensor | float) -> float:
    """One number for a timestep that may come per sample or per token (waits for the device)."""
    return float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)


def same_key(held: Any, given: Any) -> bool:
    """Equal conditioning: the same object, or tensors of equal values."""
    if held is given:
        return True
    if isinstance(held, Tensor) and isinstance(given, Tensor):
        return held.shape == given.shape and held.dtype == given.dtype and torch.equal(held, given)
    return False
