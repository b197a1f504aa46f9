"""Write predictors as rows of weights over the anchors.

A linear predictor is a row w over the anchors: prediction = sum_j w_j F(a_j), whatever F is. These functions build
such rows, in Python floats (IEEE double), from the anchor positions alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial
from typing import Literal

Differences = Literal["recursive", "divided"]
Basis = Literal["taylor", "newton"]
Row = tuple[float, ...]


def unit_rows(count: int) -> list[Row]:
    """Make the rows of the anchors themselves."""
    return [tuple(float(a == b) for b in range(count)) for a in range(count)]


def difference_rows(anchors: Sequence[int], order: int, kind: Differences = "recursive") -> list[Row]:
    """Compute the rows of the differences D_0 .. D_order at the newest anchor.

    `recursive` is the rule of TaylorSeer and TAP: D_(j+1) = (D_j now - D_j before) / g, where g is the gap to the
    anchor before, at every anchor. `divided` is D_j = j! F[a_0 .. a_j], with true divided differences on the step
    positions. On even gaps they are the same.

    Args:
        anchors: step indices, newest first.
        order: highest difference.

    Returns:
        order + 1 rows, each with one weight per anchor.

    Raises:
        ValueError: fewer than order + 1 anchors.
    """
    if len(anchors) < order + 1:
        raise ValueError(f"a difference of order {order} needs {order + 1} anchors, got {len(anchors)}: {anchors}")
    table = unit_rows(len(anchors))  # table[a] is the row of D_j at anchor a; it starts as D_0 = F itself
    rows = [table[0]]
    for j in range(1, order + 1):
        # The divided difference of order j spans j gaps; times j! it carries a factor j at each level.
        table = [
            tuple(
                (now - before) / (anchors[a] - anchors[a + (1 if kind == "recursive" else j)])
                * (1 if kind == "recursive" else j)
                for now, before in zip(table[a], table[a + 1], strict=True)
            )
            for a in range(len(table) - 1)
        ]  # fmt: skip
        rows.append(table[0])
    return rows


def extrapolation_row(
    anchors: Sequence[int],
    order: int,
    horizon: float,
    *,
    differences: Differences = "recursive",
    basis: Basis = "taylor",
) -> Row:
    """Compute the row of the order-`order` prediction `horizon` steps after the newest anchor.

    `taylor`: sum_j D_j horizon^j / j!. `newton`: sum_j D_j / j! * prod_(i<j) (horizon + a_0 - a_i); with divided
    differences this is the polynomial through the anchors.

    Raises:
        ValueError: fewer than order + 1 anchors.
    """
    row = [0.0] * len(anchors)
    factor = 1.0
    for j, difference in enumerate(difference_rows(anchors, order, differences)):
        if j:
            factor *= horizon if basis == "taylor" else horizon + anchors[0] - anchors[j - 1]
        row = [total + weight * factor / factorial(j) for total, weight in zip(row, difference, strict=True)]
    return tuple(row)


def distinct_rows(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """Merge identical rows.

    Returns:
        The index of the first of each distinct row, and for every row the position of its like among them.
    """
    position: dict[Row, int] = {}
    first: list[int] = []
    inverse: list[int] = []
    for index, row in enumerate(rows):
        if row not in position:
            position[row] = len(first)
            first.append(index)
        inverse.append(position[row])
    return first, inverse
