"""What a skip step costs, and where the time goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import xarray as xr
from torch import Tensor, nn

from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.handle import apply_policy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.family import Candidates


@dataclass(frozen=True)
class SkipStepCost:
    """Medians, in seconds.

    Attributes:
        plain: a full step of the model without hooks.
        hooked: a full step under TAP.
        skip: a skip step under TAP.
        parts: of a skip step, by name; what is left is the hooks, `start + residual` and dispatch.
    """

    plain: float
    hooked: float
    skip: float
    parts: dict[str, float]

    def __str__(self) -> str:
        rest = self.skip - sum(self.parts.values())
        lines = [
            f"full step, plain   {1e3 * self.plain:9.2f} ms",
            f"full step, hooked  {1e3 * self.hooked:9.2f} ms  ({100 * (self.hooked / self.plain - 1):+.1f} %)",
            f"skip step          {1e3 * self.skip:9.2f} ms  ({100 * self.skip / self.plain:.2f} % of a full step)",
        ]
        lines += [f"  {name:<16} {1e3 * seconds:9.2f} ms" for name, seconds in (*self.parts.items(), ("rest", rest))]
        return "\n".join(lines)

    def to_dataset(self) -> xr.Dataset:
        """`seconds` (kind) of full steps without and with hooks and of skip steps, `part_seconds` (part) of the last.

        What `parts` leave of a skip step is the part "rest".
        """
        parts = {**self.parts, "rest": self.skip - sum(self.parts.values())}
        return xr.Dataset(
            {
                "seconds": (
                    "kind",
                    [self.plain, self.hooked, self.skip],
                    {"long_name": "median wall time of a step", "units": "s"},
                ),
                "part_seconds": (
                    "part",
                    list(parts.values()),
                    {"long_name": "median wall time within a skip step", "units": "s"},
                ),
            },
            coords={"kind": ["full", "full, hooked", "skip"], "part": list(parts)},
        )


class _TimedTAP(TAPPolicy):
    """TAP that notes how long scoring and assembly take."""

    notes: dict[str, list[float]]

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        started = time.perf_counter()
        prediction = super().predict(step, probe, truth)
        self.notes["scoring"].append(time.perf_counter() - started - self.notes["assembly"][-1])
        return prediction

    def apply(self, found: Candidates, choice: Tensor, losses: Tensor | None = None) -> Prediction:
        started = time.perf_counter()
        prediction = super().apply(found, choice, losses)
        self.notes["assembly"].append(time.perf_counter() - started)
        return prediction


def skip_step_cost(pipe: Any, run: Callable[[], object], *, config: TAPConfig | None = None) -> SkipStepCost:
    """Time the steps of `run()`, which calls `pipe` with enough steps to skip some; on the CPU.

    The first call of each kind warms up and is not counted.
    """
    config = config or TAPConfig()
    plain = _plain_seconds(pipe.transformer, run)
    timed = _step_seconds(pipe, run, TAPPolicy(config))
    notes: dict[str, list[float]] = defaultdict(list)
    policy = _TimedTAP(config)
    # shared by the copies the instrument makes for its contexts
    _TimedTAP.notes = notes
    remove = _time_modules(pipe.transformer, notes)
    try:
        with apply_policy(pipe, policy) as handle:
            handle.listen(lambda event: _close_step(event.kind, notes))
            run()
    finally:
        remove()
    parts = {name.removeprefix("skip "): median(values) for name, values in notes.items() if name.startswith("skip ")}
    tail = find_adapter(pipe.transformer).tail  # type: ignore[union-attr]
    parts[tail] -= parts["scoring"] + parts["assembly"]  # they run when the tail is entered
    return SkipStepCost(median(plain), median(timed["full"]), median(timed["skip"]), parts)


def _plain_seconds(model: nn.Module, run: Callable[[], object]) -> list[float]:
    """Seconds of every forward pass of the model without our hooks."""
    marks: list[float] = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: marks.append(time.perf_counter())),
        model.register_forward_hook(lambda *_: marks.append(time.perf_counter())),
    ]
    run()
    marks.clear()
    run()
    for hook in hooks:
        hook.remove()
    return [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]


def _step_seconds(pipe: Any, run: Callable[[], object], policy: Any) -> dict[str, list[float]]:
    with apply_policy(pipe, policy) as handle:
        run()
        run()
        return handle.summary().contexts[0].seconds


def _close_step(kind: str, notes: dict[str, list[float]]) -> None:
    """Move what was noted during a skip step under its own name, and forget the rest."""
    for name in [name for name in notes if not name.startswith("skip ")]:
        values = notes.pop(name)
        if kind == "skip" and values:
            notes[f"skip {name}"].append(sum(values))


def _time_modules(model: nn.Module, notes: dict[str, list[float]]) -> Callable[[], None]:
    """Time the children of the model and of its first block; only those that complete are noted."""
    adapter = find_adapter(model)
    assert adapter is not None
    blocks, _ = adapter.modules(model)
    first = blocks[0][0]
    children = [(name, child) for name, child in model.named_children() if not isinstance(child, nn.ModuleList)] + [
        (f"block 0 {name}", child) for name, child in first.named_children()
    ]
    started: dict[str, float] = {}
    hooks = []
    for name, child in children:

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            started[name] = time.perf_counter()

        def leave(_module: nn.Module, _args: Any, _output: Any, name: str = name) -> None:
            notes[name].append(time.perf_counter() - started[name])

        hooks += [child.register_forward_pre_hook(enter), child.register_forward_hook(leave)]

    def remove() -> None:
        for hook in hooks:
            hook.remove()

    return remove
