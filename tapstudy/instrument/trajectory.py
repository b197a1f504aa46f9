"""What the instrument knows about the run in progress: which trajectory, which context, which step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.adapters import Grid
from tapstudy.instrument.clock import StepClock
from tapstudy.instrument.control import Taking
from tapstudy.instrument.latent import Form
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.full import FullPolicy


@dataclass
class ContextRun:
    """One context (guidance branch) of one transformer along one trajectory.

    Attributes:
        name: the pipeline's name for it, or a made-up one.
        named: whether the pipeline (or the caller) gave that name.
        policy: with its own history.
        key: the conditioning that tells this context apart when nobody gives a name.
        timestep: of its last call.
        shape: of the latent input; a change empties the history.
        taking: arguments that had a part in its last call, such as a ControlNet's residuals, likewise.
        grid: of the image tokens.
        observed: whether the policy has seen a full step since its history was last emptied.
        misfit: why no step of this size can enter the history, or None.
        taught_nothing: why the last full step has not entered it, or None.
        kinds: "full", "skip" or "shadow", one per step so far.
        fail_opens: why steps ran in full although the policy wanted to skip.
        choices: how many tokens took each labelled predictor.
        cache_bytes: most memory its history has held, in host memory if it is kept there.
        form: what the transformer's last output looked like.
        described: description of the arguments of its last full step, None before.
        blanks: what modules that idle at a skip step hand out then, by path, call for call.
        constants: what modules gave at that step whose output changes with one argument only, likewise.
        kept: those arguments, as `idle.keep` keeps them, by name.
    """

    name: str
    named: bool = False
    policy: Policy = field(default_factory=FullPolicy)
    key: Any = None
    timestep: Tensor | float | None = None
    shape: torch.Size | None = None
    taking: Taking = frozenset()
    grid: Grid = (1, 1, 1)
    observed: bool = False
    misfit: str | None = None
    taught_nothing: str | None = None
    kinds: list[str] = field(default_factory=list)
    fail_opens: Counter[str] = field(default_factory=Counter)
    clock: StepClock = field(default_factory=StepClock)
    choices: Tensor | None = None
    cache_bytes: int = 0
    form: Form | None = None
    described: dict[str, Any] | None = None
    blanks: dict[str, list[Any]] = field(default_factory=dict)
    constants: dict[str, list[Any]] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return len(self.kinds)

    def change(self, shape: torch.Size, taking: Taking) -> str | None:
        """Why the history is of no use to a call with a latent of this shape and these arguments, or None."""
        if self.shape is None or (self.shape, self.taking) == (shape, taking):
            return None
        came_or_went = ", ".join(sorted(self.taking ^ taking))
        return "input shape changed" if self.shape != shape else f"{came_or_went} came or went"

    def free(self) -> None:
        """Let go of all tensors; what the summary needs stays."""
        self.key = self.timestep = self.described = None
        self.blanks, self.constants, self.kept = {}, {}, {}

    def finish(self, kind: str, prediction: Prediction | None) -> None:
        """Book a completed step."""
        self.kinds.append(kind)
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

    def overtaken(self, scheduler: Any) -> bool:
        """Whether the scheduler has begun a run that this watch has not seen."""
        return self._timesteps is not None and getattr(scheduler, "timesteps", None) is not self._timesteps

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


def match_run(runs: Iterable[ContextRun], key: Any, timestep: Tensor | float | None) -> ContextRun | None:
    """The context without a name that a call with conditioning `key` belongs to.

    The conditioning is held, so that no other tensor can take its address: the same object means the same context.
    Conditioning rebuilt at every step is compared by value, but never with a context already served at this timestep
    (two branches may have equal conditioning), and first with the one that has had the fewest calls.
    """
    unnamed = [run for run in runs if not run.named]
    for run in unnamed:
        if alike(run.key, key, lambda held, given: False):
            return run
    waiting = [run for run in unnamed if timestep is None or not same_value(run.timestep, timestep)]
    if timestep is None:
        behind = min((run.step for run in waiting), default=0)
        waiting = [run for run in waiting if run.step == behind]
    waiting.sort(key=lambda run: run.step)
    return next((run for run in waiting if alike(run.key, key, same_value)), None)


def alike(held: Any, given: Any, equal: Callable[[Any, Any], bool]) -> bool:
    """The same object, or equal ones by `equal`, or lists or mappings of such."""
    if isinstance(held, Mapping) and isinstance(given, Mapping):
        return held.keys() == given.keys() and all(alike(held[name], given[name], equal) for name in held)
    if isinstance(held, list | tuple) and isinstance(given, list | tuple):
        return len(held) == len(given) and all(alike(h, g, equal) for h, g in zip(held, given, strict=True))
    return held is given or equal(held, given)


def same_value(held: Any, given: Any) -> bool:
    """Tensors of equal shape, dtype and values (waits for the device), or equal numbers."""
    if isinstance(held, Tensor) and isinstance(given, Tensor):
        return held.shape == given.shape and held.dtype == given.dtype and torch.equal(held, given)
    return isinstance(held, int | float) and isinstance(given, int | float) and held == given
