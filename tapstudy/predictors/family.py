"""What every family of linear predictors offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from tapstudy.core.weights import Row, distinct_rows


@dataclass(frozen=True)
class Label:
    """Names a predictor: its order m, the shift s in its horizon k - s, and where several meet, its family.

    The order is the highest degree of a polynomial that enters the predictor, or that its weights could stand for.
    """

    order: int
    shift: float
    family: str = ""

    def __str__(self) -> str:
        name = f"m={self.order} s={self.shift:g}"
        return f"{self.family} {name}" if self.family else name


class Family(Protocol):
    """Predictors in order of preference: on equal losses the earlier one wins. Hashable (a frozen dataclass, say)."""

    @property
    def labels(self) -> tuple[Label, ...]: ...

    @property
    def num_anchors(self) -> int:
        """How many anchors the family can use."""
        ...

    def __hash__(self) -> int: ...

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row of weights per label, for a prediction at `step` from anchors at the given steps, newest first.

        Only the distances between the steps may matter.
        """
        ...


@dataclass(frozen=True)
class Candidates:
    """The distinct predictors of a family at one step.

    Attributes:
        weights: (distinct, anchor), float64, on the CPU.
        first: for each distinct predictor, the index in the family of the first one like it, (distinct,).
        inverse: for each member of the family, its position among the distinct ones, (predictor,).
    """

    weights: Tensor
    first: Tensor
    inverse: Tensor


def candidates(family: Family, anchors: Sequence[int], step: int) -> Candidates:
    """The family's predictors at `step`, identical ones merged. They depend on distances alone, which come again."""
    return _candidates(family, tuple(anchor - anchors[0] for anchor in anchors), step - anchors[0])


@lru_cache(maxsize=1024)
def _candidates(family: Family, anchors: tuple[int, ...], step: int) -> Candidates:
    rows = family.rows(anchors, step)
    first, inverse = distinct_rows(rows)
    return Candidates(
        torch.tensor([rows[index] for index in first], dtype=torch.float64),
        torch.tensor(first),
        torch.tensor(inverse),
    )
