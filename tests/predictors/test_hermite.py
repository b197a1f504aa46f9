"""HiCache against its formula, written out with the closed forms of the polynomials."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.predictors.family import candidates
from tapstudy.predictors.hermite import HermiteFamily, hermite_values
from tapstudy.predictors.reuse import Reuse
from tapstudy.predictors.taylor import TaylorFamily
from tests.table import each_row

increasing = st.lists(st.integers(0, 60), min_size=4, max_size=6, unique=True).map(lambda a: sorted(a, reverse=True))


def apply(row, values):
    return sum(w * v for w, v in zip(row, values, strict=True))


def differences(anchors, values):
    """D_0, D_1, .. at the newest anchor by the recursion over all full steps, oldest first."""
    before = None
    for step, value in sorted(zip(anchors, values, strict=True)):
        now = [value]
        if before is not None:
            for lower in before[1]:
                now.append((now[-1] - lower) / (step - before[0]))
        before = (step, now)
    return before[1]


@given(st.floats(-3, 3))
def test_polynomials_have_their_closed_forms(x):
    expected = [1, 2 * x, 4 * x**2 - 2, 8 * x**3 - 12 * x, 16 * x**4 - 48 * x**2 + 12]
    assert hermite_values(4, x) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert hermite_values(0, x) == [1]


@given(increasing, st.integers(0, 12), st.floats(0.1, 1.2), st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_prediction_is_the_published_sum(anchors, distance, sigma, values):
    """At distance 0 it misses the newest anchor by sigma^2 D_2: that belongs to the method."""
    values = values[: len(anchors)]
    rows = HermiteFamily(orders=(0, 1, 2, 3), sigma=sigma).rows(anchors, anchors[0] + distance)
    d = differences(anchors, values)
    terms = [
        d[0],
        d[1] * 2 * sigma**2 * distance,
        d[2] / 2 * (4 * sigma**4 * distance**2 - 2 * sigma**2),
        d[3] / 6 * (8 * sigma**6 * distance**3 - 12 * sigma**4 * distance),
    ]
    for order, row in enumerate(rows):
        assert apply(row, values) == pytest.approx(sum(terms[: order + 1]), rel=1e-9, abs=1e-6)
        assert sum(row) == pytest.approx(1, abs=1e-9 * max(map(abs, row)))


def test_limits_are_taylor_and_reuse():
    """The linear term at one over root two, and a contraction that vanishes."""
    rows = HermiteFamily(orders=(1,), shifts=(0, 2), sigma=0.5**0.5).rows((18, 10, 2), 22)
    taylor = TaylorFamily(orders=(1,), shifts=(0, 2)).rows((18, 10, 2), 22)
    for row, expected in zip(rows, taylor, strict=True):
        assert row == pytest.approx(expected, abs=1e-12)
    for row in HermiteFamily(orders=(1, 2, 3), sigma=1e-6).rows((18, 10, 2, 1), 24):
        assert row == pytest.approx((1, 0, 0, 0), abs=1e-9)


def test_few_anchors_cap_the_order():
    family = HermiteFamily(orders=(0, 1, 2), sigma=0.5)
    assert family.rows((5,), 8) == [(1.0,)] * 3
    assert family.rows((5, 3), 9)[1] == family.rows((5, 3), 9)[2] == (2.0, -1.0)  # slope halved: 4 / 2 * 1/2
    assert len(candidates(family, (0,), 2).first) == 1


@each_row("settings", [{"sigma": 0}, {"sigma": float("nan")}, {"orders": ()}, {"orders": (-1,)}])
def test_bad_settings(settings):
    with pytest.raises(ValueError, match="HermiteFamily"):
        HermiteFamily(**settings)


def test_reuse_takes_the_newest_anchor():
    assert Reuse().rows((9, 4, 1), 12) == [(1.0, 0.0, 0.0)]
    assert TaylorFamily(orders=(0,), shifts=(0,)).rows((9, 4, 1), 12) == Reuse().rows((9, 4, 1), 12)
