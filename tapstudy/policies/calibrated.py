"""A table found on other images: for every skip step of one schedule its own row over the anchors.

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
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Candidates, Family, Label, rows_of
from tapstudy.predictors.reuse import Reuse


class CalibratedPolicy(AnchoredPolicy):
    """Step i takes the row `rows[i]` at every token: per window and distance, but not per token.

    Cost of a skip step: no block, one pass over the anchors. Memory: as many residuals as the longest row has weights.

    Args:
        rows: weights over the newest anchors, newest first, for every step that is skipped; the others run in full.
        config: residual site and history; its schedule and family are not used.

    Raises:
        ValueError: a row without weights, or with more than there are full steps before it.
    """

    def __init__(self, rows: Mapping[int, Row], config: TAPConfig | None = None) -> None:
        super().__init__(config, family=Reuse())
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

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        residual = self.anchors.residuals[0]
        choice = torch.zeros(residual.shape[:2], dtype=torch.int64, device=residual.device)  # (B, N)
        return self.apply(self.candidates(step), choice)

    @property
    def family_text(self) -> str:
        return repr(self.rows)


def fit_rows(gram: Tensor, full_steps: Collection[int], *, num_anchors: int = 3, ridge: float = 1e-6) -> dict[int, Row]:
    """Least-squares weights for every skip step of a schedule, teacher-forced.

    Unlike `LearnedLinear`, equal distances at different times do not share their weights.

    Args:
        gram: inner products of the recorded steps, (step, step), as `step_gram` sums them.
        full_steps: the schedule; must hold step 0.
        num_anchors: how many of the last full steps a prediction uses.
        ridge: times the mean square of the anchors, the penalty on the distance to reuse, |w - (1, 0, ..)|^2.

    Raises:
        ValueError: a Gram matrix that is none, full steps beyond it or without step 0, values out of range.
    """
    full = _check(gram, full_steps)
    if num_anchors < 1 or not ridge >= 0:
        raise ValueError(
            f"fit_rows needs num_anchors of at least 1 and ridge of at least 0, got {num_anchors} and {ridge}"
        )
    gram = gram.double()
    rows = {}
    for step in _skipped(gram, full):
        anchors = _anchors(full, step, num_anchors)
        normal, right = gram[anchors][:, anchors], gram[anchors, step]  # (J, J), (J,)
        reuse = torch.zeros_like(right)
        reuse[0] = 1
        damped = normal + ridge * normal.diagonal().mean() * torch.eye(len(anchors), dtype=torch.float64)
        change = torch.linalg.lstsq(damped, (right - normal @ reuse)[:, None], driver="gelsd").solution[:, 0]
        rows[step] = tuple((reuse + change).tolist())
    return rows


def best_rows(gram: Tensor, full_steps: Collection[int], family: Family) -> dict[int, Row]:
    """For every skip step of a schedule the member of the family with the least squared error, the first on a tie.

    Args:
        gram: as in `fit_rows`.
        full_steps: the schedule; must hold step 0.
    """
    full, gram = _check(gram, full_steps), gram.double()
    rows = {}
    for step in _skipped(gram, full):
        anchors = _anchors(full, step, family.num_anchors)
        members = rows_of(family, anchors, step)
        error = torch.tensor([(-1.0, *row) for row in members], dtype=torch.float64)  # (P, J + 1)
        part = gram[[step, *anchors]][:, [step, *anchors]]  # (J + 1, J + 1)
        rows[step] = members[int(((error @ part) * error).sum(dim=1).argmin())]
    return rows


def _anchors(full: list[int], step: int, count: int) -> list[int]:
    return [at for at in reversed(full) if at < step][:count]


def _skipped(gram: Tensor, full: list[int]) -> list[int]:
    return [step for step in range(len(gram)) if step not in full]


def _check(gram: Tensor, full_steps: Collection[int]) -> list[int]:
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.isfinite().all():
        raise ValueError(f"gram must be a finite square (step, step), got {tuple(gram.shape)}")
    full = sorted(full_steps)
    if not full or full[0] != 0 or full[-1] >= len(gram):
        raise ValueError(f"full steps must hold 0 and lie in 0..{len(gram) - 1}, got {full}")
    return full
