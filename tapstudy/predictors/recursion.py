"""Unroll predictors that build on their own predictions into rows over the anchors.

Some methods keep one value per step: the true one at a full step, at a skip step what they predicted. Every such value
is linear in the anchors, so a rule that combines values is a rule that combines rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tapstudy.core.weights import Row, unit_rows

# (rows of the values at the last steps, newest first; the anchors so far as (step, row), newest first) -> next row
Rule = Callable[[Sequence[Row], Sequence[tuple[int, Row]]], Row]


def unroll(anchors: Sequence[int], step: int, rule: Rule) -> Row:
    """Find the row of the value that `rule` arrives at in `step`, applied at every skip step on the way.

    What was predicted between the two oldest anchors is lost with the anchors before them: the values there are
    interpolated linearly. They are exact if those two are neighbours, as the first two steps of a warm-up are.

    Args:
        anchors: step indices, newest first; the steps between them were skipped.
    """
    units = unit_rows(len(anchors))
    if len(anchors) == 1:
        return units[0]
    last, first = anchors[-1], anchors[-2]
    known = [(first, units[-2]), (last, units[-1])]
    values = [
        combine([((first - at) / (first - last), units[-1]), ((at - last) / (first - last), units[-2])])
        for at in range(first, last - 1, -1)
    ]
    full = dict(zip(anchors, units, strict=True))
    for now in range(first + 1, step + 1):
        if now in full:
            known.insert(0, (now, full[now]))
            values.insert(0, full[now])
        else:
            values.insert(0, rule(values, known))
    return values[0]


def combine(terms: Sequence[tuple[float, Row]]) -> Row:
    """Sum up factor * row."""
    return tuple(
        sum(factor * weight for (factor, _), weight in zip(terms, weights, strict=True))
        for weights in zip(*(row for _, row in terms), strict=True)
    )
