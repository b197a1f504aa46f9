"""Learn weights from recorded trajectories, after L2P, arXiv 2604.26365.

For every pattern of distances between the anchors and the step to predict, the weights w minimise
sum |F_step - sum_j w_j F_(a_j)|^2 over everything recorded. That needs only the inner products of the steps.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from tapstudy.core.weights import Row
from tapstudy.predictors.family import Label
from tapstudy.predictors.regression import fitted_row, fitting_steps

# distances of the older anchors to the newest, then of the step to predict
Pattern = tuple[int, ...]


@dataclass(frozen=True)
class LearnedLinear:
    """Look weights up in a table by pattern of distances, made by `fit`: one predictor.

    L2P learns one row per step over the values of all steps before, by gradient descent from reuse, and feeds its own
    predictions back. Here the fit is closed, over the last full steps only, and equal distances share their weights.

    Args:
        table: (pattern, weights) pairs.
        num_anchors: how many anchors it may use.
        unseen: what a pattern outside the table does: "raise", or "reuse" the newest anchor.
    """

    table: tuple[tuple[Pattern, Row], ...]
    num_anchors: int
    unseen: Literal["raise", "reuse"] = "raise"

    @classmethod
    def fit(
        cls,
        gram: Tensor,
        full_steps: Collection[int],
        *,
        num_anchors: int = 3,
        ridge: float = 1e-6,
        unseen: Literal["raise", "reuse"] = "raise",
    ) -> Self:
        """Fit the weights for every skip step of a schedule, teacher-forced.

        Args:
            gram: inner products of the recorded steps, (step, step), as `step_gram` sums them.
            full_steps: the schedule.
            num_anchors: how many of the last full steps a prediction uses.
            ridge: times the mean square of the anchors, the penalty on the distance to reuse, |w - (1, 0, ..)|^2.

        Raises:
            ValueError: an invalid Gram matrix, full steps beyond it, no skip step to fit, a negative ridge.
        """
        full, skipped = fitting_steps("LearnedLinear", gram, full_steps, num_anchors, ridge)
        sums: dict[Pattern, Tensor] = {}
        for step, anchors in skipped.items():
            chosen = torch.tensor([*anchors, step])
            part = gram.double()[chosen][:, chosen]  # (J + 1, J + 1)
            pattern = _pattern(anchors, step)
            sums[pattern] = sums.get(pattern, torch.zeros_like(part)) + part
        if not sums:
            raise ValueError(f"LearnedLinear: the schedule {full} leaves no step of {len(gram)} to predict")
        table = tuple((pattern, fitted_row(total, ridge)) for pattern, total in sorted(sums.items()))
        return cls(table, num_anchors, unseen)

    @property
    def labels(self) -> tuple[Label, ...]:
        return (Label(self.num_anchors - 1, 0, "learned"),)

    def rows(self, anchors: Sequence[int], step: int) -> list[Row]:
        """Look up the row of this pattern. Raises ValueError if it is not in the table and `unseen` is "raise"."""
        pattern = _pattern(anchors, step)
        found = dict(self.table).get(pattern)
        if found is None and self.unseen == "raise":
            raise ValueError(
                f"LearnedLinear has no weights for step {step} from anchors {tuple(anchors)} (distances {pattern}): "
                f"fit it with the schedule it runs on, or with unseen='reuse'; it knows {[p for p, _ in self.table]}"
            )
        return [found or (1.0, *(0.0 for _ in anchors[1:]))]


def step_gram(trajectories: Iterable[Tensor]) -> Tensor:
    """Multiply the features of all pairs of steps, summed over trajectories, tokens and channels.

    Args:
        trajectories: features (step, ..., channel), all with the same number of steps; one at a time is in memory.

    Returns:
        (step, step), float64.

    Raises:
        ValueError: none at all, differing numbers of steps, or values that are not finite.
    """
    total: Tensor | None = None
    for trajectory in trajectories:
        flat = trajectory.flatten(1).double()  # (T, everything)
        if not flat.isfinite().all():
            raise ValueError("step_gram: a trajectory holds values that are not finite; leave out half-written samples")
        if total is None:
            total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
        if len(flat) != len(total):
            raise ValueError(f"step_gram: a trajectory of {len(flat)} steps after one of {len(total)}")
        total += (flat @ flat.T).cpu()
    if total is None:
        raise ValueError("step_gram: there are no trajectories")
    return total


def _pattern(anchors: Sequence[int], step: int) -> Pattern:
    return (*(anchors[0] - anchor for anchor in anchors[1:]), step - anchors[0])
