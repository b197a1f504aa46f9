"""Where runs and their steps begin."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor

from tapstudy.instrument.driver import SCALINGS, Driver, Value


class StepWatch:
    """Tells whether a call of the transformer begins a run, or a step of it.

    With a scheduler that drives the calls: `set_timesteps` makes a new `timesteps` tensor, so another object there
    means another run, even after an exception; within it the scheduler's own count of steps tells. Without one: the
    timestep. It moves with every step, and against its direction, or back to the first value, with a new run.

    Attributes:
        tick: number of the step, over all runs.
        index: the scheduler's number of that step, None if unknown.
        counted: whether the scheduler has counted a step in this run.
        repeated: whether calls at one and the same timestep were taken for steps, for want of any sign.
        misread: whether this run began with the call that showed that they were none.
    """

    def __init__(self) -> None:
        self.tick = 0
        self._scheduler: Callable[[], Any] = lambda: None
        self._timesteps: Tensor | None = None
        self._left: Tensor | None = None
        self._offered: tuple[Tensor | None, int | None] = (None, None)
        self.forget()

    def forget(self) -> None:
        self.counted = self.repeated = self.misread = False
        self.index: int | None = None
        self._blank = True
        self._first: float | None = None
        self._last: float | None = None
        self._direction = 0.0
        self._scalings = SCALINGS  # of the timesteps in this run

    def look(self, driver: Driver, value: Value) -> bool:
        """Take in a call; whether a run begins with it."""
        if driver.timesteps is self._timesteps:
            index = driver.index(value, after=self.index or 0, scalings=self._scalings)
        else:
            index = driver.index(value)
        (offered, at), self._offered = self._offered, (driver.timesteps, driver.step_index)
        if not driver.certain and index is not None:
            # a scheduler that had no part in the run does not come in halfway, nor does one join us halfway, or wait
            # where it is when the next run begins
            by_value = not self._blank and self.index is None and driver.timesteps is offered
            late = bool(driver.step_index) and driver.timesteps is not self._timesteps
            waits = at is not None and driver.step_index == at
            if late or (by_value and (waits or not self._restarted(value()))):
                index = None
        now = value() if index is None else value.read
        moved = (index is not None and self.index is not None and index != self.index) or (
            now is not None and self._last is not None and now != self._last
        )
        # what was taken for steps were contexts, of a run that must begin anew
        misread = self.repeated and moved
        began = self._begins(driver, index, now) or misread
        if began:
            self.forget()
            self.misread = misread
        if began or moved:
            self.tick += 1
            self.counted |= not began and index is not None
        if index is not None:
            self.index = index
            # one that fits none is of a pipeline whose word counts, whatever it makes of its timesteps
            if now is not None:
                self._scalings = (self._scalings & driver.scalings(index, now)) or self._scalings
        if now is not None:
            self._note(now)
        self._blank = False
        return began

    @property
    def still(self) -> bool:
        """Whether nothing has shown yet how steps are told: no scheduler is known, and the timestep has not moved."""
        return self.index is None and self._direction == 0 and not self.misread

    @property
    def overtaken(self) -> bool:
        """Whether the scheduler has begun a run that this watch has not seen."""
        scheduler = self._scheduler()
        timesteps = getattr(scheduler, "timesteps", None)
        return scheduler is not None and timesteps is not self._timesteps and timesteps is not self._left

    def leave(self) -> bool:
        """The pipeline is through. Whether the watch saw its last step: timesteps made after it are for no run."""
        timesteps = self._timesteps
        seen = timesteps is not None and self.index == len(timesteps) - 1
        if seen:  # held, as the others
            self._left = getattr(self._scheduler(), "timesteps", None)
        return seen

    @property
    def finished(self) -> bool:
        """Whether the scheduler has no more steps to make, or is gone."""
        scheduler, timesteps = self._scheduler(), self._timesteps
        if timesteps is None:  # a loop that no scheduler is known of
            return False
        return scheduler is None or (getattr(scheduler, "step_index", None) or 0) >= len(timesteps)

    def _begins(self, driver: Driver, index: int | None, now: float | None) -> bool:
        timesteps = driver.timesteps if index is not None or driver.certain else None
        if timesteps is not None and timesteps is not self._timesteps:
            self._timesteps = timesteps  # held, so that its address cannot be reused by the next run's tensor
            self._scheduler = _weakly(driver.scheduler)
            return True
        if self._blank:
            return True
        if index is None and self.index is not None and not driver.certain:
            return True  # the scheduler that has driven the run does not drive this call
        if index is not None and self.index is not None and index != self.index:
            return index < self.index
        return self._restarted(now)

    def _restarted(self, now: float | None) -> bool:
        if now is None or self._first is None or self._last is None:
            return False
        move = now - self._last
        return (move != 0 and now == self._first) or move * self._direction < 0

    def _note(self, now: float) -> None:
        if self._first is None or self._last is None:
            self._first = now
        elif now != self._last:
            self._direction = now - self._last
        self._last = now


def _weakly(value: Any) -> Callable[[], Any]:
    try:
        return weakref.ref(value)
    except TypeError:  # such as a namespace
        return lambda: value
