"""Join several families into one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tapstudy.core.weights import Row
from tapstudy.predictors.family import Family, Label, rows_of


@dataclass(frozen=True, init=False)
class Union:
    """Offer the members of all families, in their order: on equal losses the earlier family wins.

    Args:
        families: each sees only as many of the newest anchors as it can use.
        names: of the families in the labels; by default what their own labels say, or the name of their class.

    Raises:
        ValueError: no family, or not one name for each.
    """

    families: tuple[Family, ...]
    names: tuple[str, ...]

    def __init__(self, *families: Family, names: Sequence[str] = ()) -> None:
        if not families:
            raise ValueError("Union: needs at least one family")
        if names and len(names) != len(families):
            raise ValueError(f"Union: one name per family, got {len(names)} names for {len(families)} families")
        object.__setattr__(self, "families", families)
        object.__setattr__(self, "names", tuple(names))

    @property
    def labels(self) -> tuple[Label, ...]:
        names = self.names or ("",) * len(self.families)
        return tuple(
            replace(label, family=name or label.family or _class_name(family))
            for family, name in zip(self.families, names, strict=True)
            for label in family.labels
        )

    @property
    def num_anchors(self) -> int:
        return max(family.num_anchors for family in self.families)

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """One row per label, with zeros for anchors that a family does not use."""
        return [
            row + (0.0,) * (len(anchors) - len(row))
            for family in self.families
            for row in rows_of(family, anchors[: family.num_anchors], step)
        ]


def _class_name(family: Family) -> str:
    return type(family).__name__.removesuffix("Family").lower()
