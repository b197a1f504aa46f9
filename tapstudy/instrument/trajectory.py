"""What the instrument knows about a run: its contexts, which call belongs to which, where steps and runs begin."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.driver import Span, StepWatch
from tapstudy.instrument.inputs import Inputs
from tapstudy.instrument.latent import Form, read_latent
from tapstudy.instrument.layouts import Grid
from tapstudy.policies.base import Policy, Prediction, RunInfo
from tapstudy.policies.full import FullPolicy

Taking = frozenset[str]
_HOLDERS = (Mapping, list, tuple)


class StepClock:
    """Seconds per kind of step, without making the host wait.

    On CUDA events are recorded, and only read when asked; elsewhere the wall clock is read at once.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[dict[str, str]]:
        """Time the body; it must put the kind of step under "kind" (a body that raises is not recorded)."""
        note: dict[str, str] = {}
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))  # not that of the device that is current
            yield note
            end.record(torch.cuda.current_stream(device))
            self._events.append((note["kind"], start, end))
        else:
            started = time.perf_counter()
            yield note
            self._seconds[note["kind"]].append(time.perf_counter() - started)

    def seconds(self) -> dict[str, list[float]]:
        """Return seconds of every step so far, by kind."""
        for kind, start, end in self._events:
            end.synchronize()
            self._seconds[kind].append(start.elapsed_time(end) / 1000)
        self._events.clear()
        return {kind: list(values) for kind, values in self._seconds.items()}


@dataclass
class ContextRun:
    """One context (guidance branch) of one transformer along one trajectory.

    Attributes:
        name: the pipeline's name for it, or a made-up one.
        named: the name that the pipeline (or the caller) gave it, None if none did.
        policy: with its own history.
        group: number of the contexts that nothing but order and latent tell apart: they have one conditioning, or one
            given name.
        key: the conditioning that tells this context apart when nobody gives a name.
        timestep: of its last call.
        tick: step of the trajectory that this call was in.
        latent: of that call, as it was given.
        version: of that latent, which counts changes in place.
        sure: whether the latent said, against the others of its group, that the call belongs to this context.
        restart: why the history must be emptied at the next call, None if it need not.
        shape: of the latent input; a change empties the history.
        taking: arguments that had a part in its last call, such as a ControlNet's residuals, likewise.
        grid: of the image tokens.
        observed: whether the policy has seen the last full step, and its history holds what it should.
        misfit: why no step of this size can enter the history, or None.
        taught_nothing: why the last full step has not entered it, or None.
        kinds: "full", "skip", "partial" or "shadow", one per step so far.
        fail_opens: why steps ran in full although the policy wanted to skip.
        choices: how many tokens took each labelled predictor.
        cache_bytes: most memory its history has held, in host memory if it is kept there.
        form: what the transformer's last output looked like.
        tail_device: of the input of the tail, if another one than that of the first block.
        described: description of the arguments of its last full step, None before.
        blanks: what modules that idle at a skip step hand out then, by path, call for call.
        inputs: what its passes were given, without the values, anew whenever the history began.
        attended: keys and values of all tokens, by module and call, if the policy names tokens.
    """

    name: str
    named: str | None = None
    policy: Policy = field(default_factory=FullPolicy)
    group: int = 0
    key: Any = None
    timestep: Tensor | float | None = None
    tick: int = -1
    latent: Any = None
    version: int | None = None
    sure: bool = False
    restart: str | None = None
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
    tail_device: torch.device | None = None
    described: dict[str, Any] | None = None
    blanks: dict[str, list[Any]] = field(default_factory=dict)
    inputs: list[Inputs] = field(default_factory=list)
    attended: dict[tuple[str, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def step(self) -> int:
        return len(self.kinds)

    def change(self, shape: torch.Size, taking: Taking) -> str | None:
        """Tell why the history is of no use to a call with a latent of this shape and these arguments, or None."""
        if self.shape is None or (self.shape, self.taking) == (shape, taking):
            return self.restart
        came_or_went = ", ".join(sorted(self.taking ^ taking))
        return "input shape changed" if self.shape != shape else f"{came_or_went} came or went"

    def free(self, unused: Policy) -> None:
        """Let go of all tensors, for an unused policy; what the summary needs stays."""
        self.policy, self.observed = unused, False
        self.key = self.timestep = self.latent = self.described = None
        self.blanks, self.attended = {}, {}

    def finish(self, kind: str, prediction: Prediction | None) -> None:
        """Book a completed step."""
        self.kinds.append(kind)
        held = self.policy.cache_bytes
        if self.attended:
            held += sum(tensor.nbytes for pair in self.attended.values() for tensor in pair)
        self.cache_bytes = max(self.cache_bytes, held)
        if prediction is None or prediction.choice is None:
            return
        choice = prediction.choice.reshape(-1).long()
        if self.choices is None:
            self.choices = torch.zeros(len(self.policy.labels), dtype=torch.int64, device=choice.device)
        self.choices.scatter_add_(0, choice, torch.ones_like(choice))


MOVED_ON = "calls with the same conditioning changed in number from one step to the next"
_UNRELATED = 1.2  # see `distance`
JUMPED = "the latent is no continuation of the last one"


class Trajectory:
    """One run of one transformer: its contexts, by name.

    A context is a guidance branch, or one of several calls that a step makes with the same conditioning (windows,
    tiles, perturbed guidance): the n-th such call of a step belongs to the n-th such context, unless the latents say
    otherwise.
    """

    def __init__(self) -> None:
        self.runs: dict[str, ContextRun] = {}
        self.watch = StepWatch()
        self.span: Span | None = None
        self.hands_over_at: int | None = None  # last step that this transformer sees of a run that another goes on with
        self.ended = False
        self._counts: dict[int, int] = {}
        self._closed = 0

    def clear(self) -> None:
        """Forget the run."""
        self.clear_contexts()
        self.watch.forget()

    def clear_contexts(self) -> None:
        self.runs.clear()
        self._counts.clear()
        self.span, self.hands_over_at, self.ended = None, None, False

    def told(self, run: ContextRun) -> RunInfo:
        """Say what a policy is told whose context begins now; one that joins midway has the steps that are left."""
        if self.span is None:
            return RunInfo(grid=run.grid)
        index = self.span.first if self.watch.index is None else self.watch.index
        left = max(1, self.span.end - index)
        return RunInfo(run.step + left, run.grid, max(0, index - run.step), self.span.total)

    def context(self, name: str | None, key: Any, latent: Any, timestep: Tensor | float | None) -> ContextRun:
        """Return the context that a call belongs to, made if there is none."""
        if self._closed != self.watch.tick:
            self._close_step()
        siblings = self._siblings(name, key)
        waiting = [run for run in siblings if run.tick < self.watch.tick]
        if siblings and not waiting and self._goes_on(siblings[-1], latent, timestep):
            self.watch.tick += 1
            self._close_step()
            waiting = siblings
        if waiting:
            run = waiting[0]
            run.sure = False
            if len(siblings) > 1:
                run = _choose(waiting, siblings, latent)
            elif self.watch.index is None and distance(latent, run.latent) > _UNRELATED:
                run.restart = JUMPED
        else:
            group = siblings[0].group if siblings else len({run.group for run in self.runs.values()})
            run = ContextRun(self._new_name(name), name, group=group)
            self.runs[run.name] = run
        run.key, run.timestep, run.tick = key, timestep, self.watch.tick
        run.latent, run.version = _held(latent)
        return run

    def aside(self, name: str) -> ContextRun:
        """Return the context of calls that no history is about."""
        return self.runs.setdefault(name, ContextRun(name, name, group=-1))

    def _goes_on(self, run: ContextRun, latent: Any, timestep: Tensor | float | None) -> bool:
        """Tell whether a second call of `run` in this step, by what is known, is of the next one."""
        if self.watch.still and alike(run.latent, latent, _never) and run.version == _held(latent)[1]:
            # the very same call. Nobody samples like that, but this is how one tries things out
            self.watch.repeated = True
            return True
        if self.watch.counted:
            return False
        return timestep is None or not (timestep is run.timestep or same_value(run.timestep, timestep))

    def _siblings(self, name: str | None, key: Any) -> list[ContextRun]:
        """Return the contexts with this name, or this conditioning, in the order of their first calls.

        Conditioning is held, so that no other tensor can take its address: the same object means the same. If it was
        rebuilt since, it is compared by value.
        """
        runs = [run for run in self.runs.values() if run.named == name]
        if name is not None:
            return runs
        same = [run for run in runs if run.key is key or alike(run.key, key, _never)]
        if any(run.tick < self.watch.tick for run in same):
            return same
        equal = [run for run in runs if run not in same and alike(run.key, key, same_value)]
        if any(run.tick < self.watch.tick for run in equal):
            return equal
        return same or equal

    def _new_name(self, name: str | None) -> str:
        others = sum(run.named == name for run in self.runs.values())
        if name is not None:
            return f"{name}-{others}" if others else name
        return f"context-{others}" if others else "default"

    def _close_step(self) -> None:
        """When a step is over: did each group make as many calls as in the step before?"""
        over, self._closed = self._closed, self.watch.tick
        groups: dict[int, list[ContextRun]] = {}
        for run in self.runs.values():
            groups.setdefault(run.group, []).append(run)
        for group, runs in groups.items():
            called = [run for run in runs if run.tick == over]
            if not called:
                continue
            changed = self._counts.get(group, len(called)) != len(called)
            self._counts[group] = len(called)
            for run in runs:
                doubtful = changed and not run.sure and run.step > 1
                if doubtful if run.tick == over else len(runs) > 1:
                    run.restart = MOVED_ON


def _choose(waiting: Sequence[ContextRun], siblings: Sequence[ContextRun], latent: Any) -> ContextRun:
    """Tell which of the contexts of one group that have not had their call in this step gets it: the first, by order.

    Of a sampler's latents, each goes on from where it was: one that is clearly nearer to another context's last
    latent belongs to that.
    """
    first = waiting[0]
    far = {run.name: distance(latent, run.latent) for run in siblings}
    nearest = min(waiting, key=lambda run: far[run.name])
    chosen = nearest if far[nearest.name] < far[first.name] / 2 else first
    chosen.sure = all(far[chosen.name] < far[run.name] / 2 for run in siblings if run is not chosen)
    return chosen


def distance(latent: Any, other: Any) -> float:
    """Norm of the difference of two latents over the larger norm (waits for the device).

    Two of independent noise are 1.4 apart, and two of another shape infinitely far. Without values, on the meta device,
    none are apart.
    """
    now, then = read_latent(latent), read_latent(other)
    if then.shape != now.shape or then.device != now.device:
        return float("inf")
    if now.is_meta:
        return 0.0
    now, then = now.detach().float(), then.detach().float()
    longest = torch.maximum(torch.linalg.vector_norm(now), torch.linalg.vector_norm(then))
    return float(torch.linalg.vector_norm(now - then) / longest.clamp_min(torch.finfo(torch.float32).tiny))


def _held(latent: Any) -> tuple[Any, int | None]:
    """Return what is held of a latent, and what counts its changes in place.

    That is the latent itself, or, so that no graph of gradients is held, what it shares its values with.
    """
    if not isinstance(latent, Tensor):
        return ([_held(sample)[0] for sample in latent] if isinstance(latent, list) else latent), None
    return latent if latent.grad_fn is None else latent.detach(), None if latent.is_inference() else latent._version


def _never(held: Any, given: Any) -> bool:
    del held, given
    return False


def alike(held: Any, given: Any, equal: Callable[[Any, Any], bool]) -> bool:
    """Tell whether two are the same object, or equal by `equal`, or lists or mappings of such."""
    if isinstance(held, Mapping) and isinstance(given, Mapping):
        return held.keys() == given.keys() and all(alike(held[name], given[name], equal) for name in held)
    if isinstance(held, list | tuple) and isinstance(given, list | tuple):
        return len(held) == len(given) and all(alike(h, g, equal) for h, g in zip(held, given, strict=True))
    return held is given or equal(held, given)


def same_value(held: Any, given: Any) -> bool:
    """Tensors of equal shape, dtype and values (waits for the device), or equal numbers; no two without values."""
    if isinstance(held, Tensor) and isinstance(given, Tensor):
        alike_outside = held.shape == given.shape and held.dtype == given.dtype and not given.is_meta
        return alike_outside and torch.equal(held, given)
    return isinstance(held, int | float) and isinstance(given, int | float) and held == given


def taking_part(arguments: Mapping[str, Any]) -> Taking:
    """Return the names of the arguments that bring tensors into a call, without ControlNets' residuals that are zero.

    Where a ControlNet ends midway, or begins late, its residuals are left out from a step on, or multiplied by 0. What
    the blocks add then jumps, and a history from before the jump tells nothing of the steps behind it. To see a zero
    waits for the device, once in a call with such residuals.
    """
    taking = []
    for name, value in arguments.items():
        zero = "control" not in name
        if isinstance(value, Tensor) if zero and not isinstance(value, _HOLDERS) else _takes_part(value, zero=zero):
            taking.append(name)
    return frozenset(taking)


def _takes_part(value: Any, *, zero: bool) -> bool:
    """Tell whether there is a tensor in a tensor, list or mapping of such; with `zero` one of zeros counts as well."""
    if isinstance(value, Tensor):
        return zero or value.is_meta or bool(value.any())
    if isinstance(value, Mapping):
        value = [*value.values()]
    return isinstance(value, list | tuple) and any(_takes_part(part, zero=zero) for part in value)
