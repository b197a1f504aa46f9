"""The trajectories of one transformer: one for every pipeline that calls it, and for every thread."""

from __future__ import annotations

import threading
from typing import Any, Self
from weakref import WeakKeyDictionary

from torch import nn

from tapstudy.instrument.driver import Driver, Value, find_driver, span_of
from tapstudy.instrument.trajectory import Trajectory
from tapstudy.policies.base import Policy


class Names(threading.local):
    """Names that the caller (`given`) and the pipeline (`told`) give the calls of a thread."""

    given: str | None = None
    told: str | None = None


class Threads:
    """A turn for one thread at a time, and what each calls its calls. A copy has others."""

    def __init__(self) -> None:
        self.turn, self.names = threading.RLock(), Names()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return type(self)()


class Trajectories:
    """Keeps the runs of pipelines apart, by the scheduler, and those of loops that no pipeline makes, by the thread.

    Args:
        target: what the policy was put on; its scheduler drives the calls that no other is found for.
        policy: unused copies of it take the places of those whose runs are over.

    Attributes:
        latest: the one that was gone on with last.
    """

    def __init__(self, model: nn.Module, target: Any, policy: Policy) -> None:
        self.model, self.target, self.policy = model, target, policy
        self.latest = Trajectory()
        self._seen: Any = None
        self._held: WeakKeyDictionary[Any, Trajectory] = WeakKeyDictionary()

    @property
    def target_timesteps(self) -> Any:
        """Those that the target's scheduler has now, None if it has none."""
        return getattr(getattr(self.target, "scheduler", None), "timesteps", None)

    @property
    def overtaken(self) -> bool:
        """Whether the scheduler of the latest, or the target's, has begun another run since the last call."""
        return self.latest.watch.overtaken or (self._seen is not None and self.target_timesteps is not self._seen)

    def take(self, value: Value) -> tuple[Driver, bool]:
        """Make the one that a call belongs to the latest: what drives the call, and whether a run begins with it."""
        driver = find_driver(self.target, value)
        self.latest = latest = self._of(driver)
        self._seen = self.target_timesteps
        if latest.ended or not latest.runs:
            latest.watch.forget()
        return driver, latest.watch.look(driver, value)

    def start(self, driver: Driver) -> None:
        """Empty the latest one for a new run, and free the histories of others that are through."""
        self.latest.clear_contexts()
        self.latest.span = span = span_of(driver, self.model, self.latest.watch.index)
        self.latest.hands_over_at = span.end - 1 if span is not None and span.end < span.total else None
        for other in self._held.values():
            if other is not self.latest and other.watch.finished:
                self._end(other)

    def end(self) -> Trajectory:
        """Free the histories of the pipeline that this is called from, and keep the counts for the summary."""
        trajectory = self._of(find_driver(self.target, Value(None)))
        # WanAnimatePipeline sets timesteps anew after its last step too
        if trajectory is self.latest and not trajectory.ended and trajectory.watch.leave():
            self._seen = self.target_timesteps
        self._end(trajectory)
        return trajectory

    def clear(self) -> None:
        """Forget all of them."""
        for trajectory in [*self._held.values(), self.latest]:
            trajectory.clear()
        self._held.clear()
        self._seen = None

    def _of(self, driver: Driver) -> Trajectory:
        owner = driver.scheduler if driver.certain else threading.current_thread()
        try:
            found = self._held.get(owner)
        except TypeError:  # a scheduler that cannot be held weakly
            owner = threading.current_thread()
            found = self._held.get(owner)
        return found if found is not None else self._held.setdefault(owner, Trajectory())

    def _end(self, trajectory: Trajectory) -> None:
        for run in trajectory.runs.values():
            run.free(self.policy.fresh())
        trajectory.ended = True
