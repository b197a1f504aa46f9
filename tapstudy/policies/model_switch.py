"""Let another model of the same family make some of the steps."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Self

from torch import Tensor, nn

from tapstudy.core.checks import check_integer
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.decision import Decision

Model = Callable[..., Any]


class _Models(tuple[Model, ...]):
    """Models that the copies of a policy share, told apart by their weights."""

    def __repr__(self) -> str:
        return ", ".join(
            f"{type(model).__name__} with weights of sum |w| = {_size(model):.6g}"
            if isinstance(model, nn.Module)
            else repr(model)
            for model in self
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _size(model: nn.Module) -> float:
    return sum(float(weight.detach().double().abs().sum()) for weight in model.parameters())


class ModelSwitchPolicy(Policy):
    """Make some steps with the model itself, and the others with another one.

    Source: Hybrid SD (arXiv 2408.06646), where the model makes the first steps and a pruned and distilled one the
    others; any that takes the same arguments and gives the same output will do, such as a copy of the model with
    rounded weights. Cost of a step that is not the model's own: that of the other model.

    Args:
        small: the other model.
        large_steps: the first so many steps are the model's own (10 of 25 are published), or the numbers of those.
            The very first one is the model's in any case.

    Raises:
        TypeError, ValueError: no integers of at least 0, or no model.
    """

    def __init__(self, small: Model, large_steps: int | Collection[int]) -> None:
        if not callable(small):
            raise TypeError(f"ModelSwitchPolicy needs a model that can be called, got {small!r}")
        if isinstance(large_steps, Collection):
            large_steps = tuple(sorted(large_steps))
        for step in large_steps if isinstance(large_steps, tuple) else (large_steps,):
            check_integer("ModelSwitchPolicy: large_steps", step, 0)
        self.models: Sequence[Model] = _Models((small,))
        self.large_steps = large_steps

    def wants_full(self, step: int) -> bool:
        return step in self.large_steps if isinstance(self.large_steps, tuple) else step < self.large_steps

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        return Decision(model=0)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        del step, probe, residual

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        raise RuntimeError("ModelSwitchPolicy predicts nothing: another model makes the other steps")
