"""Let a smaller model of the same family take over after some steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from torch import Tensor

from tapstudy.core.checks import check_integer
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.decision import Decision

Model = Callable[..., Any]


class _Models(tuple[Model, ...]):
    """Models that the copies of a policy share."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class ModelSwitchPolicy(Policy):
    """Make the first `large_steps` steps with the model itself, and the others with another one.

    Source: Hybrid SD (arXiv 2408.06646), whose second model is pruned and distilled; any that takes the same arguments
    and gives the same output will do. Cost of a step behind the switch: that of the other model.

    Args:
        small: the other model.
        large_steps: 10 of 25 are published.

    Raises:
        TypeError, ValueError: no integer of at least 0, or no model.
    """

    def __init__(self, small: Model, large_steps: int) -> None:
        check_integer("ModelSwitchPolicy: large_steps", large_steps, 0)
        if not callable(small):
            raise TypeError(f"ModelSwitchPolicy needs a model that can be called, got {small!r}")
        self.models: Sequence[Model] = _Models((small,))
        self.large_steps = large_steps

    def wants_full(self, step: int) -> bool:
        return step < self.large_steps

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        return Decision(model=0)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        del step, probe, residual

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        raise RuntimeError("ModelSwitchPolicy predicts nothing: another model makes the other steps")
