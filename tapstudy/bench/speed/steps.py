"""Where the time of a step goes: stamps in the model and in the policy cut every step into parts, without a gap."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from statistics import fmean
from typing import Any, Self

import torch
from torch import Tensor, nn

from tapstudy.core.anchors import Anchors
from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.handle import apply_policy
from tapstudy.instrument.places import Method, Place
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy

PARTS = {
    "embedding": "what the model computes before its first block",
    "probe": "up to the modulated input of the probed block's attention",
    "scoring": "losses of all candidates, and the choice",
    "assembly": "the chosen predictors applied to the residuals",
    "tail": "what the model computes behind its last block",
    "rest": "hooks, hidden state plus residual, dispatch",
}
Step = dict[str, float]


class Marks:
    """Hold stamps of the steps in progress and past: of the clock on a CPU, in the stream of the device elsewhere.

    A part lasts until the next one begins, so the parts of a step make up all of it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._steps: list[list[tuple[str, Any]]] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Stay one: policies are copied for their contexts, and all copies write here."""
        return self

    def open(self, part: str = "rest") -> None:
        """Begin a step."""
        self._steps.append([])
        self.begin(part)

    def begin(self, part: str) -> None:
        if self.device.type == "cuda":
            stamp: Any = torch.cuda.Event(enable_timing=True)
            stamp.record()
        else:
            stamp = time.perf_counter()
        self._steps[-1].append((part, stamp))

    def steps(self) -> list[Step]:
        """Return seconds by part, of every step. The last stamp of a step is its end."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [self._read(stamps) for stamps in self._steps]

    def _read(self, stamps: list[tuple[str, Any]]) -> Step:
        found: Step = {}
        for (part, start), (_, end) in pairwise(stamps):
            seconds = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
            found[part] = found.get(part, 0.0) + seconds
        return found


def middle(steps: list[Step]) -> Step:
    """Average every part over the middle half of the steps by duration: robust, and parts add up to the whole."""
    if not steps:
        raise ValueError("no steps of this kind were run")
    ordered = sorted(steps, key=lambda step: sum(step.values()))
    cut = len(ordered) // 4
    kept = ordered[cut : len(ordered) - cut]
    return {part: fmean(step.get(part, 0.0) for step in kept) for part in dict.fromkeys(p for s in kept for p in s)}


class MarkedTAP(TAPPolicy):
    """Hold TAP that marks where scoring and assembly begin."""

    def __init__(self, config: TAPConfig, marks: Marks, **options: Any) -> None:
        super().__init__(config, **options)
        self.marks = marks
        if self.compiled is None:
            self.anchors = MarkedAnchors(self.anchors.capacity, config, marks)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        self.marks.begin("scoring")
        prediction = super().predict(step, probe, truth)
        self.marks.begin("rest")
        return prediction


class MarkedAnchors(Anchors):
    """Hold a history that marks where its residuals are read, which assembly begins with."""

    def __init__(self, capacity: int, config: TAPConfig, marks: Marks) -> None:
        super().__init__(capacity, config.history_dtype, probe_dtype=config.probe_dtype, device=config.history_device)
        self.marks = marks

    @property
    def residuals(self) -> list[Tensor]:
        self.marks.begin("assembly")
        return super().residuals


def plain_steps(target: Any, run: Callable[[], object], device: torch.device) -> list[Step]:
    """Time steps of `run()`, which samples with the pipeline `target`, without a policy; all under the part "rest"."""
    marks = Marks(device)
    with _whole(target.transformer, marks):
        run()
    return marks.steps()


def tap_steps(
    target: Any, run: Callable[[], object], device: torch.device, *, config: TAPConfig, **options: Any
) -> dict[str, list[Step]]:
    """Return steps of `run()` under TAP by kind ("full", "skip"), cut into `PARTS`.

    Args:
        config: with the residual in hidden space.
        options: further ones of `TAPPolicy`.

    Raises:
        ValueError: the residual is elsewhere, or `run` made calls of several contexts.
    """
    if config.residual != "hidden":
        raise ValueError(f"a step is cut into parts at the tail, where residual={config.residual!r} never comes")
    marks = Marks(device)
    with ExitStack() as stack:
        handle = stack.enter_context(apply_policy(target, MarkedTAP(config, marks, **options)))
        stack.enter_context(_parts(target.transformer, config.probe_depth, marks))
        run()
        contexts = handle.summary().contexts
    if len(contexts) != 1:
        raise ValueError(f"steps are cut into parts for one context, got {[context.context for context in contexts]}")
    found: dict[str, list[Step]] = {"full": [], "skip": []}
    for letter, step in zip(contexts[0].mask, marks.steps(), strict=True):
        found["full" if letter == "F" else "skip"].append(step)
    return found


@contextmanager
def _whole(model: nn.Module, marks: Marks) -> Iterator[None]:
    """Mark the calls of the model, whatever runs in them."""
    hooks = [
        model.register_forward_pre_hook(lambda *_: marks.open()),
        model.register_forward_hook(lambda *_: marks.begin("end")),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _parts(model: nn.Module, depth: int, marks: Marks) -> Iterator[None]:
    """Mark the parts of a skip step; of a full step all blocks but the first count as "rest".

    The marks stand below the hooks of the policy, and so tell the model's own work from the instrument's.
    """
    adapter = find_adapter(model)
    assert adapter is not None
    blocks, tails = adapter.modules(model)
    attention = blocks[depth][0].get_submodule(adapter.attention)
    with ExitStack() as stack:
        stack.enter_context(_whole(model, marks))
        stack.enter_context(_inside(model, marks, before="embedding", after="rest"))
        stack.enter_context(_inside(blocks[0][0], marks, before="probe"))
        # the attention of a skip step is stopped before its own forward
        stack.callback(attention.register_forward_pre_hook(lambda *_: marks.begin("rest")).remove)
        for tail in tails:
            stack.enter_context(_inside(tail, marks, before="tail"))
        yield


@contextmanager
def _inside(module: nn.Module, marks: Marks, *, before: str, after: str | None = None) -> Iterator[None]:
    place = Place(module, Mark(marks, before, after), lowest=True)
    place.take()
    try:
        yield
    finally:
        place.leave()


class Mark:
    """Hold marks where a module begins to run, and where it ends."""

    def __init__(self, marks: Marks, before: str, after: str | None) -> None:
        self.marks, self.before, self.after = marks, before, after

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.marks.begin(self.before)
        output = inner(*args, **kwargs)
        if self.after is not None:
            self.marks.begin(self.after)
        return output
