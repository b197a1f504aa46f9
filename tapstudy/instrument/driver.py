"""Which scheduler drives a call of the transformer, and which of its steps the call belongs to."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
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
    _read: float | None = None

    @property
    def is_read(self) -> bool:
        return self._read is not None

    def __call__(self) -> float | None:
        if self._read is None and self.timestep is not None:
            self._read = timestep_value(self.timestep)
        return self._read


def timestep_value(timestep: Tensor | float) -> float:
    """Make one number of a timestep, which may come per sample or token; 0 on the meta device, else waits for it."""
    if isinstance(timestep, Tensor):
        return 0.0 if timestep.is_meta else float(timestep.max())
    return float(timestep)


@dataclass(frozen=True)
class Driver:
    """What drives a call.

    Attributes:
        scheduler: None if nobody knows it.
        owner: the pipeline, or other object, that the scheduler belongs to, if any.
        certain: the call comes from the owner's own `__call__`. Otherwise the scheduler counts as long as the timestep
            that the model gets is the one the scheduler is at.
    """

    scheduler: Any = None
    owner: Any = None
    certain: bool = False

    @property
    def timesteps(self) -> Tensor | None:
        """Of the whole run, in the order of sampling; None before `set_timesteps`."""
        timesteps = getattr(self.scheduler, "timesteps", None)
        # schedulers are born with their training times
        is_set = getattr(self.scheduler, "num_inference_steps", None) is not None or self.step_index is not None
        return timesteps if isinstance(timesteps, Tensor) and timesteps.ndim == 1 and is_set else None

    @property
    def step_index(self) -> int | None:
        """The step that the scheduler is at, None before the first, and where it does not count."""
        return getattr(self.scheduler, "step_index", None)

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

    def scalings(self, index: int, value: Value) -> frozenset[int]:
        """Find the scalings in which a call with timestep `value` is of step `index`: all while that is not read."""
        timesteps, given = self.timesteps, value() if value.is_read else None
        if timesteps is None or given is None:
            return SCALINGS
        distances = self._distances(float(timesteps[index]), given)
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
        config = getattr(self.scheduler, "config", None) or {}
        share = timestep / float(config.get("num_train_timesteps") or 1000)
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
    for frame in _loops():
        found = _held(frame)
        if found and any(driver.scheduler is own.scheduler for driver in found):
            found = [driver for driver in found if driver.scheduler is not own.scheduler] + [own]
        if len(found) > 1:
            found = [driver for driver in found if driver.index(value) is not None]
            return found[0] if len(found) == 1 else own if own in found else Driver()
        if found:
            return replace(found[0], certain=_called(frame, found[0].owner))
    return own


def _loops() -> Iterator[FrameType]:
    """Return the functions that the call comes through, nearest first, without the machinery in between."""
    frame, seen = inspect.currentframe(), 0
    while frame is not None and seen < _DEPTH:
        if not (frame.f_globals.get("__name__") or "").startswith(_BETWEEN):
            seen += 1
            yield frame
        frame = frame.f_back


def _held(frame: FrameType) -> list[Driver]:
    """Return the schedulers that a function holds; only that of the object itself if it is a method of one."""
    code = frame.f_code
    if code.co_argcount and code.co_varnames[0] == "self":
        itself = frame.f_locals.get("self")
        scheduler = getattr(itself, "scheduler", None)
        if _is_scheduler(scheduler):
            return [Driver(scheduler, itself)]
    found: dict[int, Driver] = {}
    for value in list(frame.f_locals.values()):
        # asked of its class: just any object may do anything when asked for an attribute
        is_pipeline = any(hasattr(type(value), name) for name in ("register_modules", "register_components"))
        scheduler = getattr(value, "scheduler", None) if is_pipeline else value
        if _is_scheduler(scheduler) and (is_pipeline or id(scheduler) not in found):
            found[id(scheduler)] = Driver(scheduler, value if is_pipeline else None)
    return list(found.values())


def _is_scheduler(value: Any) -> bool:
    return all(callable(getattr(type(value), name, None)) for name in ("step", "set_timesteps"))


def _called(frame: FrameType, owner: Any) -> bool:
    """Tell whether the owner's `__call__` is on the way from this function up."""
    up: FrameType | None = frame
    while owner is not None and up is not None:
        if up.f_code.co_name == "__call__" and any(value is owner for value in up.f_locals.values()):
            return True
        up = up.f_back
    return False
