"""Which scheduler drives a call of the transformer, which of its steps the call belongs to, and where runs begin."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor, nn

from tapstudy.policies.base import RunInfo

# what lies between a loop and the transformer, and holds no scheduler of a loop
_BETWEEN = ("torch.", "tapstudy.instrument.", "diffusers.hooks.", "diffusers.models.", "accelerate.", "contextlib")
_DEPTH = 32
# how far two values of one timestep may be apart: none, and after two roundings to half precision
_EXACT, _ROUNDED = 1e-5, 4e-3
# pipelines give a model the scheduler's timestep in one of these, see `Driver._distances`
SCALINGS = frozenset(range(3))


@dataclass
class Value:
    """The timestep of a call as one number, read (and waited for) when it is first asked for."""

    timestep: Tensor | float | None
    read: float | None = None

    def __call__(self) -> float | None:
        if self.read is None and self.timestep is not None:
            self.read = timestep_value(self.timestep)
        return self.read


def timestep_value(timestep: Tensor | float) -> float:
    """Make one number of a timestep, which may come per sample or token; 0 on the meta device, else waits for it."""
    if isinstance(timestep, Tensor):
        return 0.0 if timestep.is_meta else float(timestep.max())
    return float(timestep)


class Driver:
    """What drives a call, as it is when the call is made.

    Attributes:
        scheduler: None if nobody knows it.
        owner: the pipeline, or other object, that the scheduler belongs to, if any.
        certain: the call comes from the owner's own `__call__`. Otherwise the scheduler counts as long as the timestep
            that the model gets is the one the scheduler is at.
        timesteps: of the whole run, in the order of sampling; None before `set_timesteps`.
        step_index: the step that the scheduler is at, None before the first, and where it does not count.
    """

    def __init__(self, scheduler: Any = None, owner: Any = None) -> None:
        self.scheduler, self.owner, self.certain = scheduler, owner, False
        self.step_index: int | None = getattr(scheduler, "step_index", None)
        timesteps = getattr(scheduler, "timesteps", None)
        # schedulers are born with their training times
        is_set = getattr(scheduler, "num_inference_steps", None) is not None or self.step_index is not None
        fits = isinstance(timesteps, Tensor) and timesteps.ndim == 1 and is_set
        self.timesteps: Tensor | None = timesteps if fits else None

    @property
    def told(self) -> int | None:
        """Number of steps of the run, if the pipeline tells."""
        told = getattr(self.owner, "num_timesteps", None) if self.certain else None
        return told if isinstance(told, int) and told > 0 else None

    def index(self, value: Value, *, after: int = 0, scalings: frozenset[int] = SCALINGS) -> int | None:
        """Find the scheduler's step of a call with timestep `value`; None if it does not drive the call, or tell.

        Waits for the device unless the call comes from a pipeline whose scheduler counts its steps. Where several
        steps might be meant, it is the next one from `after` on. `scalings` are those that the model may get its
        timesteps in.
        """
        timesteps = self.timesteps
        if timesteps is None:
            return None
        counted = self.step_index
        at = getattr(self.scheduler, "begin_index", None) if counted is None else counted
        if at is not None and at < len(timesteps) and (self.certain or self._gives(timesteps[at], value, scalings)):
            return int(at)
        if counted is not None or (at is not None and self.certain):
            return None
        found = self._located(timesteps, value, scalings)
        begin = None if self.told is None else len(timesteps) - self.told
        if begin in found:
            return begin
        return next((index for index in found if index >= after), found[0] if found else None)

    def scalings(self, index: int, given: float) -> frozenset[int]:
        """Find the scalings in which a call with that timestep is of step `index`."""
        if self.timesteps is None:
            return SCALINGS
        distances = self._distances(float(self.timesteps[index]), given)
        return frozenset(scaling for scaling in SCALINGS if distances[scaling] <= _ROUNDED)

    def _located(self, timesteps: Tensor, value: Value, scalings: frozenset[int]) -> list[int]:
        """Return all steps at which a pipeline might give the model that value."""
        given = value()
        if given is None:
            return []
        off = [self._distance(timestep, given, scalings) for timestep in timesteps.tolist()]
        exact = [index for index, distance in enumerate(off) if distance <= _EXACT]
        return exact or [index for index, distance in enumerate(off) if distance <= min(_ROUNDED, *off)]

    def _gives(self, timestep: Tensor, value: Value, scalings: frozenset[int]) -> bool:
        given = value()
        return given is None or self._distance(float(timestep), given, scalings) <= _ROUNDED

    def _distance(self, timestep: float, given: float, scalings: frozenset[int]) -> float:
        """Between a value given to the model and the nearest that pipelines give it at `timestep`."""
        distances = self._distances(timestep, given)
        return min(distances[scaling] for scaling in scalings)

    def _distances(self, timestep: float, given: float) -> tuple[float, float, float]:
        """Compare a value with a timestep as it is, as a share of the longest, and as that share from the other end."""
        config = getattr(self.scheduler, "config", None)
        longest = config.get("num_train_timesteps") if isinstance(config, Mapping) else None
        share = timestep / float(longest or 1000)
        return _apart(given, timestep), _apart(given, share), abs(given - (1 - share))


def _apart(value: float, other: float) -> float:
    """Distance of two values relative to the larger one."""
    return abs(value - other) / (max(abs(value), abs(other)) or 1.0)


@dataclass(frozen=True)
class Span:
    """The steps of a scheduler's run that one transformer sees.

    Attributes:
        first: number of the first of them in the run: above 0 for image-to-image, and for the second of two
            transformers that share the steps.
        total: length of the whole run.
        timesteps: of the steps that the transformer sees, (step,).
        sigmas: likewise, None if the scheduler has none.
    """

    first: int
    total: int
    timesteps: Tensor
    sigmas: Tensor | None

    @property
    def end(self) -> int:
        return self.first + len(self.timesteps)


def span_of(driver: Driver, model: nn.Module, index: int | None) -> Span | None:
    """Return the steps that `model` sees in a run that it enters at step `index` of the driver's scheduler.

    A pipeline whose step is not known begins where the steps that it tells of fit in, or at the first.
    """
    timesteps = driver.timesteps
    if timesteps is None or (index is None and not driver.certain):
        return None
    end, told = len(timesteps), driver.told
    # the last timestep of some schedulers is where the run arrives
    arrives = told == end - 1 and float(timesteps[-1]) == 0 and "SCM" in type(driver.scheduler).__name__
    if arrives:
        end -= 1
    first = index if index is not None else max(0, end - (told or end))
    boundary = _boundary(driver)
    if boundary is not None and _holds(driver.owner, "transformer", model):
        end = max(first + 1, int((timesteps >= boundary).sum()))
    sigmas = getattr(driver.scheduler, "sigmas", None)
    sigmas = sigmas[first:end] if isinstance(sigmas, Tensor) and len(sigmas) >= len(timesteps) else None
    return Span(first, len(timesteps) - arrives, timesteps[first:end], sigmas)


def run_info(span: Span | None, grid: tuple[int, int, int] | None = None) -> RunInfo:
    """Return what a policy is told of a run."""
    return RunInfo(grid=grid) if span is None else RunInfo(len(span.timesteps), grid, span.first, span.total)


def _boundary(driver: Driver) -> float | None:
    """Timestep below which a second transformer takes over."""
    config = getattr(driver.owner, "config", None)
    ratio = config.get("boundary_ratio") if isinstance(config, Mapping) else None
    if ratio is None or getattr(driver.owner, "transformer_2", None) is None:
        return None
    return float(ratio * driver.scheduler.config.num_train_timesteps)


def _holds(owner: Any, name: str, model: nn.Module) -> bool:
    held = getattr(owner, name, None)
    return getattr(held, "_orig_mod", held) is model


# Finding it


def find_driver(target: Any, value: Value) -> Driver:
    """Return what drives the call, with timestep `value`, that is being made.

    Pipelines may share the transformer, each with a scheduler of its own. So the nearest function on the way to the
    transformer tells, that is a method of something with a scheduler, or holds schedulers or pipelines in variables.
    Without one it is the scheduler of `target`, which the policy was put on, as it is now. Calls of a trial, which has
    no target, are made by no loop, whatever holds a scheduler around it.
    """
    if target is None:
        return Driver()
    own = Driver(getattr(target, "scheduler", None), target)
    frame, seen = inspect.currentframe(), 0
    while frame is not None and seen < _DEPTH:
        if not (frame.f_globals.get("__name__") or "").startswith(_BETWEEN):
            seen += 1
            found = _held(frame, own)
            if len(found) > 1:
                found = [driver for driver in found if driver.index(value) is not None]
                return found[0] if len(found) == 1 else own if own in found else Driver()
            if found:
                found[0].certain = _called(frame, found[0].owner)
                return found[0]
        frame = frame.f_back
    return own


def _held(frame: FrameType, own: Driver) -> list[Driver]:
    """Return the schedulers that a function holds, `own` last; of a method only that of its object, if it has one."""
    local, code = frame.f_locals, frame.f_code
    if code.co_argcount and code.co_varnames[0] == "self":
        itself = local.get("self")
        scheduler = getattr(itself, "scheduler", None)
        if _is_scheduler(scheduler):
            return [own if scheduler is own.scheduler else Driver(scheduler, itself)]
    found: dict[int, Driver] = {}
    for value in list(local.values()):
        kind = type(value)  # which is asked: just any object may do anything when asked for an attribute
        is_pipeline = hasattr(kind, "register_modules") or hasattr(kind, "register_components")
        scheduler = getattr(value, "scheduler", None) if is_pipeline else value
        if _is_scheduler(scheduler) and (is_pipeline or id(scheduler) not in found):
            found[id(scheduler)] = Driver(scheduler, value if is_pipeline else None)
    if found.pop(id(own.scheduler), None) is not None:
        found[id(own.scheduler)] = own
    return list(found.values())


def _is_scheduler(value: Any) -> bool:
    kind = type(value)
    return callable(getattr(kind, "step", None)) and callable(getattr(kind, "set_timesteps", None))


def _called(frame: FrameType, owner: Any) -> bool:
    """Tell whether the owner's `__call__` is on the way from this function up."""
    up: FrameType | None = frame
    while owner is not None and up is not None:
        if up.f_code.co_name == "__call__" and any(value is owner for value in up.f_locals.values()):
            return True
        up = up.f_back
    return False


# Where runs and their steps begin


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
