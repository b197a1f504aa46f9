"""A family of somebody's own is refused where it would be read wrongly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from tapstudy import TAPConfig
from tapstudy.policies.base import RunInfo
from tapstudy.policies.blended import BlendedPolicy
from tapstudy.policies.calibrated import best_rows
from tapstudy.policies.nonlinear import NonlinearPolicy, NonlinearTAPPolicy
from tapstudy.policies.single import SinglePolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.family import Label, candidates, rows_of
from tapstudy.predictors.frequency import FrequencySplit
from tapstudy.predictors.reuse import Reuse
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.union import Union
from tests.table import each_row

TWO = (Label(0, 0, "a"), Label(1, 0, "b"))
CONFIG = TAPConfig(warmup_steps=2)


@dataclass(frozen=True)
class Given:
    """Whatever rows."""

    found: object
    labels: tuple[Label, ...] = TWO
    num_anchors: int = 2

    def rows(self, anchors, step):
        return self.found


GOOD = ((1.0, 0.0), (2.0, -1.0))
WRONG = {
    "a row too few": (GOOD[:1], "must give one row per label, 2, got 1"),
    "a row too many": ((*GOOD, (0.0, 1.0)), "must give one row per label, 2, got 3"),
    "ragged": (((1.0, 0.0), (1.0,)), r"must give 2 weights, one per anchor, got 1 for b m=1 s=0: write 0"),
    "too wide": (((1.0, 0.0, 0.0), (2.0, -1.0, 0.0)), "must give 2 weights, one per anchor, got 3"),
    "nan": (((1.0, 0.0), (float("nan"), 0.0)), "weights that are not finite for b m=1 s=0"),
    "infinite": (((1.0, float("inf")), GOOD[1]), "weights that are not finite for a m=0 s=0"),
}


def first_skip(policy):
    policy.begin(RunInfo(8))
    features = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(0))
    for step in range(2):
        policy.observe(step, features * (step + 1), features)
    return policy.predict(2, features)


@each_row("case", WRONG)
def test_wrong_rows_are_refused_wherever_a_family_is_used(case):
    rows, message = WRONG[case]
    family = Given(rows)
    users = [
        lambda: rows_of(family, (1, 0), 2),
        lambda: candidates(family, (1, 0), 2),
        lambda: first_skip(TAPPolicy(CONFIG, family=family)),
        lambda: first_skip(BlendedPolicy(CONFIG, family=family)),
        lambda: first_skip(SinglePolicy(family, CONFIG)),
        lambda: best_rows(torch.eye(4), (0, 1, 3), family),
        # beside another family the rows could add up to the right number
        lambda: first_skip(TAPPolicy(CONFIG, family=Union(family, Given((*GOOD, GOOD[0])[: 4 - len(rows)])))),
    ]
    for use in users:
        with pytest.raises(ValueError, match=f"Given.rows for step .*{message}"):
            use()


def test_rows_of_a_part_of_a_forecast():
    split = FrequencySplit(low=Given(((float("nan"), 0.0),), labels=TWO[:1]), transform="fft")
    with pytest.raises(ValueError, match="not finite"):
        first_skip(NonlinearPolicy(split, CONFIG))


@each_row("rows", [[[1, 0], [2, -1]], torch.tensor(GOOD), GOOD])
def test_rows_may_be_any_numbers(rows):
    class Family:
        labels, num_anchors = TWO, 2

        def rows(self, anchors, step):
            return rows

    assert rows_of(Family(), (1, 0), 2) == [*GOOD]
    assert candidates(Family(), (1, 0), 2).weights.tolist() == [list(row) for row in GOOD]
    assert first_skip(TAPPolicy(CONFIG, family=Union(Reuse(), Family()))).residual.shape == (1, 3, 4)


@dataclass
class Unhashable:
    """A dataclass with equality that is not frozen."""

    labels: tuple[Label, ...] = TWO
    num_anchors: int = 2
    rows: object = None


@each_row(
    ("family", "error", "message"),
    [
        (Unhashable(), TypeError, "Unhashable must be hashable.*make it a frozen dataclass"),
        (Given([list(row) for row in GOOD]), TypeError, "Given must be hashable.*unhashable type: 'list'"),
        (Given(GOOD, labels=()), ValueError, "labels must be Label objects, at least one"),
        (Given(GOOD, labels=("a", "b")), ValueError, "labels must be Label objects"),
        (Given(GOOD, num_anchors=0), ValueError, "num_anchors must be an integer of at least 1, got 0"),
        (TaylorFamily, TypeError, r"a family is an object, got the class TaylorFamily: write TaylorFamily\(\)"),
        ((1, 2), TypeError, "tuple is no family of predictors: it lacks labels, num_anchors, rows"),
    ],
)
def test_what_is_no_family_is_refused_at_construction(family, error, message):
    with pytest.raises(error, match=message):
        TAPPolicy(CONFIG, family=family)


@dataclass(frozen=True)
class Narrow:
    """A nonlinear predictor that loses an axis on the way."""

    label = Label(0, 0, "narrow")
    num_anchors = 1

    def predict(self, anchors, values, step, *, grid=None):
        return values[0].mean(dim=1, keepdim=True)


@each_row("policy", [NonlinearPolicy(Narrow(), CONFIG), NonlinearTAPPolicy([Narrow()], CONFIG)])
def test_a_nonlinear_predictor_keeps_the_shape(policy):
    with pytest.raises(ValueError, match=r"Narrow.predict at step 2 gave shape \(1, 1, 4\) for values of shape"):
        first_skip(policy)
