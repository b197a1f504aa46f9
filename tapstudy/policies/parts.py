"""Share what policies have in common that leave out parts of a model: a history for every part."""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from tapstudy.policies.base import Policy, Prediction, RunInfo
from tapstudy.policies.decision import Decision, Layout, Part, Value, leave_out
from tapstudy.predictors.family import Family, candidates, check_family
from tapstudy.predictors.reuse import Reuse

Kept = tuple[int, Value]


class PartsPolicy(Policy):
    """Leave out some parts of the model at some steps: what they last gave, or what that grows to, takes their place.

    Every part has a history of its own, of the steps at which it ran. Cost of a step: whatever runs of the model. The
    first step runs in full.

    Args:
        family: of linear predictors, applied to what a part gave at those steps; the first that is in it.
    """

    def __init__(self, family: Family | None = None) -> None:
        self.family = Reuse() if family is None else family
        check_family(self.family)
        self.run = RunInfo()
        self.watched: tuple[Part, ...] = ()
        self._kept: dict[tuple[Part, int], deque[Kept]] = {}

    @abstractmethod
    def parts(self, layout: Layout) -> tuple[Part, ...]:
        """List the parts of a model that may be left out; they are watched whenever they run."""

    @abstractmethod
    def left_out(self, step: int) -> Collection[Part]:
        """Say which of them do not run at `step`, if all have run before; none: a full step."""

    def begin(self, run: RunInfo) -> None:
        self.run, self._kept = run, {}
        self.watched = () if run.layout is None else self.parts(run.layout)

    def wants_full(self, step: int) -> bool:
        return not self._kept or not self.left_out(step)

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        return leave_out(self.left_out(step))

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        del step, probe, residual

    def observe_part(self, step: int, part: Part, slot: int, value: Value) -> None:
        """Take in what a part gave: a copy, which is the policy's. `slot` counts the modules of the part."""
        self._kept.setdefault((part, slot), deque(maxlen=self.family.num_anchors)).appendleft((step, value))

    def predict_part(self, step: int, part: Part, slot: int) -> Value:
        """Predict what a part that is left out would give, in memory of its own."""
        kept = self.kept(part, slot)
        found = candidates(self.family, [at for at, _ in kept], step)
        row = found.weights[int(found.inverse[0])].tolist()
        return weighted(row, [value for _, value in kept])

    def kept(self, part: Part, slot: int = 0) -> Sequence[Kept]:
        """Return the steps at which a part ran, newest first, each with what it gave.

        Raises:
            RuntimeError: it has not run.
        """
        if (part, slot) not in self._kept:
            raise RuntimeError(
                f"{type(self).__name__} leaves out {part}, which has not run yet (module {slot} of it): parts run in "
                "full steps, all of them in the first"
            )
        return self._kept[part, slot]

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        raise RuntimeError(f"{type(self).__name__} leaves out parts and predicts no residual of the whole model")

    @property
    def cache_bytes(self) -> int:
        tensors: list[Tensor] = []
        for kept in self._kept.values():
            for _, value in kept:
                each(tensors.append, value)
        return sum(tensor.nbytes for tensor in tensors)


def each(function: Callable[..., Value], *values: Value) -> Value:
    """Apply a function to the tensors of values that are alike: tensors, or tuples of tensors and None."""
    first = values[0]
    if isinstance(first, Tensor):
        return function(*values)
    if isinstance(first, tuple | list):
        return type(first)(each(function, *parts) for parts in zip(*values, strict=True))
    if first is None:
        return None
    raise TypeError(f"a part of the model gave {type(first).__name__}: tensors can be kept, and tuples of them")


def weighted(row: Sequence[float], values: Sequence[Value]) -> Value:
    """Sum up weight * value, float32 or better, in the dtype of the values; a copy where only the first counts."""

    def total(*tensors: Tensor) -> Tensor:
        if row[0] == 1 and not any(row[1:]):
            return tensors[0].clone()
        wide = torch.promote_types(tensors[0].dtype, torch.float32)
        result = tensors[0].to(wide) * row[0]
        for weight, tensor in zip(row[1:], tensors[1:], strict=True):
            result.add_(tensor.to(wide), alpha=weight)
        return result.to(tensors[0].dtype)

    return each(total, *values)
