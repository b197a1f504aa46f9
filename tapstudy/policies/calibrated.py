"""Predict by a table found on other images: for every skip step of one schedule its own row over the anchors.

The errors of all rows follow from the inner products of the recorded steps, G = <F_s, F_t> summed over everything.
`fit_rows` minimises the squared error at each skip step. Its forecasts are projections onto the anchors; a sum of
projections is the projection of the sum, so (but for the ridge) the same rows also minimise the error of what the
solver adds up over a window. `best_rows` chooses at each step among the members of a family.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from tapstudy.core.weights import Row
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.single import SinglePolicy
from tapstudy.predictors.family import Candidates, Family, Label, rows_of
from tapstudy.predictors.regression import fitted_row, fitting_steps
from tapstudy.predictors.reuse import Reuse


class CalibratedPolicy(SinglePolicy):
    """Take the row `rows[i]` at step i and every token: per window and distance, but not per token.

    Cost of a skip step: no block, one pass over the anchors. Memory: as many residuals as the longest row has weights.

    Args:
        rows: weights over the newest anchors, newest first, for every step that is skipped; the others run in full.
        config: residual site and history; its schedule and family are not used.

    Raises:
        ValueError: a row without weights, or with more than there are full steps before it.
    """

    def __init__(self, rows: Mapping[int, Row], config: TAPConfig | None = None) -> None:
        super().__init__(Reuse(), config)
        for step, row in rows.items():
            before = step - sum(other < step for other in rows)
            if not 1 <= len(row) <= before:
                raise ValueError(
                    f"CalibratedPolicy: step {step} has {before} full steps before it, but {len(row)} weights"
                )
        self.rows = {step: tuple(rows[step]) for step in sorted(rows)}
        self.anchors.capacity = max(map(len, self.rows.values()), default=1)
        self.labels = (Label(self.anchors.capacity - 1, 0, "calibrated"),)

    def wants_full(self, step: int) -> bool:
        return step not in self.rows

    def candidates(self, step: int) -> Candidates:
        row = self.rows[step]
        padded = (*row, *(0.0 for _ in range(len(self.anchors) - len(row))))
        return Candidates(torch.tensor([padded], dtype=torch.float64), torch.tensor([0]), torch.tensor([0]))

    @property
    def family_text(self) -> str:
        return repr(self.rows)


def fit_rows(gram: Tensor, full_steps: Collection[int], *, num_anchors: int = 3, ridge: float = 1e-6) -> dict[int, Row]:
    """Fit weights for every skip step of a schedule by least squares, teacher-forced.

    Unlike `LearnedLinear`, equal distances at different times do not share their weights.

    Args:
        gram, num_anchors, ridge: as for `LearnedLinear.fit`.
        full_steps: the schedule; must hold step 0.

    Raises:
        ValueError: an invalid Gram matrix, full steps beyond it or without step 0, values out of range.
    """
    gram = gram.double()
    skipped = skipped_steps("fit_rows", gram, full_steps, num_anchors, ridge)
    return {step: fitted_row(gram[at := [*anchors, step]][:, at], ridge) for step, anchors in skipped.items()}


def best_rows(gram: Tensor, full_steps: Collection[int], family: Family) -> dict[int, Row]:
    """Find for every skip step of a schedule the member of the family with the least squared error, the first on a tie.

    Args:
        gram: as in `fit_rows`.
        full_steps: the schedule; must hold step 0.
    """
    gram, rows = gram.double(), {}
    for step, anchors in skipped_steps("best_rows", gram, full_steps, family.num_anchors).items():
        members = rows_of(family, anchors, step)
        error = torch.tensor([(-1.0, *row) for row in members], dtype=torch.float64)  # (P, J + 1)
        part = gram[[step, *anchors]][:, [step, *anchors]]  # (J + 1, J + 1)
        rows[step] = members[int(((error @ part) * error).sum(dim=1).argmin())]
    return rows


def skipped_steps(
    name: str, gram: Tensor, full_steps: Collection[int], num_anchors: int, ridge: float = 0.0
) -> dict[int, list[int]]:
    """Check as `fitting_steps` does, and that step 0 runs in full: the anchors of every skip step of the schedule."""
    full, skipped = fitting_steps(name, gram, full_steps, num_anchors, ridge)
    if full[0] != 0:
        raise ValueError(f"{name}: full steps must hold 0, got {full}")
    return skipped
