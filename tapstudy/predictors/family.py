"""Define what every family of linear predictors offers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from typing import Protocol

import torch
from torch import Tensor

from tapstudy.core.weights import Row, distinct_rows


@dataclass(frozen=True)
class Label:
    """Name a predictor: its order m, the shift s in its horizon k - s, and where several meet, its family.

    The order is the highest degree of a polynomial that enters the predictor, or that its weights could stand for.
    """

    order: int
    shift: float
    family: str = ""

    def __str__(self) -> str:
        name = f"m={self.order} s={self.shift:g}"
        return f"{self.family} {name}" if self.family else name


def labels_of(orders: Iterable[int], shifts: Iterable[float], family: str = "") -> tuple[Label, ...]:
    """Label orders x shifts, lowest order first and, within an order, the longest horizon first."""
    return tuple(Label(order, shift, family) for order in sorted(orders) for shift in sorted(shifts))


def check_orders(name: str, orders: Sequence[int], window: int | None = None) -> None:
    """Raise ValueError if there is no order, one below 0, or one that needs more anchors than the window keeps."""
    if not orders or min(orders) < 0:
        raise ValueError(f"{name} must be numbers of at least 0, got {orders}")
    if window is not None and window <= max(orders):
        raise ValueError(
            f"{name} up to {max(orders)} need a window of at least {max(orders) + 1} anchors, got {window}"
        )


class Family(Protocol):
    """Offer predictors in order of preference: on equal losses the earlier wins. Hashable (a frozen dataclass, say)."""

    @property
    def labels(self) -> tuple[Label, ...]: ...

    @property
    def num_anchors(self) -> int:
        """How many anchors the family can use."""
        ...

    def __hash__(self) -> int: ...

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row of weights per label, for a prediction at `step` from anchors at the given steps, newest first.

        There may be fewer anchors than the family can use. Only the distances between the steps may matter.
        """
        ...


def check_family(family: Family) -> None:
    """Check whether an object is a family at all.

    Raises:
        TypeError: it lacks a part of the contract, or cannot be hashed.
        ValueError: no labels, or no anchors.
    """
    if isinstance(family, type):
        raise TypeError(f"a family is an object, got the class {family.__name__}: write {family.__name__}()")
    name = type(family).__name__
    lacking = [part for part in ("labels", "num_anchors", "rows") if not hasattr(family, part)]
    if lacking:
        raise TypeError(f"{name} is no family of predictors: it lacks {', '.join(lacking)}")
    try:
        hash(family)
    except TypeError as error:
        raise TypeError(
            f"{name} must be hashable, for its rows are kept ({error}): make it a frozen dataclass"
        ) from error
    labels, count = family.labels, family.num_anchors
    if not labels or not all(isinstance(label, Label) for label in labels):
        raise ValueError(f"{name}: labels must be Label objects, at least one, got {labels!r}")
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"{name}: num_anchors must be an integer of at least 1, got {count!r}")


def rows_of(family: Family, anchors: Sequence[int], step: int) -> list[Row]:
    """Get the family's rows, one for every label, with one finite weight for every anchor.

    Raises:
        ValueError: the family gives others.
    """
    rows = [tuple(float(weight) for weight in row) for row in family.rows(anchors, step)]
    where = f"{type(family).__name__}.rows for step {step} from anchors {tuple(anchors)}"
    if len(rows) != len(family.labels):
        raise ValueError(f"{where} must give one row per label, {len(family.labels)}, got {len(rows)}")
    for label, row in zip(family.labels, rows, strict=True):
        if len(row) != len(anchors):
            raise ValueError(
                f"{where} must give {len(anchors)} weights, one per anchor, got {len(row)} for {label}: write 0 for "
                "anchors that it does not use"
            )
        if not all(map(isfinite, row)):
            raise ValueError(f"{where} gives weights that are not finite for {label}: {row}")
    return rows


@dataclass(frozen=True)
class Candidates:
    """Hold the distinct predictors of a family at one step.

    Attributes:
        weights: (distinct, anchor), float64, on the CPU.
        first: for each distinct predictor, the index in the family of the first one like it, (distinct,).
        inverse: for each member of the family, its position among the distinct ones, (predictor,).
    """

    weights: Tensor
    first: Tensor
    inverse: Tensor


def candidates(family: Family, anchors: Sequence[int], step: int) -> Candidates:
    """Find the predictors at `step`, identical ones merged. They depend on distances alone, so they are kept."""
    return spaced_candidates(family, tuple([anchor - anchors[0] for anchor in anchors]), step - anchors[0])


@lru_cache(maxsize=1024)
def spaced_candidates(family: Family, anchors: tuple[int, ...], step: int) -> Candidates:
    """Find them for steps that are counted from the newest anchor."""
    rows = rows_of(family, anchors, step)
    first, inverse = distinct_rows(rows)
    return Candidates(
        torch.tensor([rows[index] for index in first], dtype=torch.float64), torch.tensor(first), torch.tensor(inverse)
    )
