from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.core.weights import difference_rows, distinct_rows, extrapolation_row

increasing = st.lists(st.integers(0, 200), min_size=2, max_size=6, unique=True).map(lambda a: sorted(a, reverse=True))


def apply(row, values):
    return sum(w * v for w, v in zip(row, values, strict=True))


def test_recursive_by_hand():
    # F = 5, 3, 2 at steps 10, 2, 1: D1 now = (5 - 3) / 8, before = (3 - 2) / 1, D2 = (1/4 - 1) / 8
    d0, d1, d2 = difference_rows((10, 2, 1), 2, "recursive")
    values = (5.0, 3.0, 2.0)
    assert apply(d0, values) == 5
    assert apply(d1, values) == 0.25
    assert apply(d2, values) == -0.09375
    # 5 + 0.25 * 4 - 0.09375 * 16 / 2
    assert apply(extrapolation_row((10, 2, 1), 2, 4), values) == 5.25


def test_divided_by_hand():
    # t^2 at steps 6, 3, 1: 2! f[6, 3, 1] = 2
    values = (36.0, 9.0, 1.0)
    assert apply(difference_rows((6, 3, 1), 2, "divided")[2], values) == pytest.approx(2)


@given(increasing, st.lists(st.integers(-5, 5), min_size=6, max_size=6), st.integers(-6, 12))
def test_divided_newton_reproduces_polynomials(anchors, coefficients, horizon):
    """Order m through m + 1 anchors, however uneven, is exact for every polynomial of degree m."""
    order = len(anchors) - 1

    def polynomial(t):
        return sum(Fraction(c) * t**j for j, c in enumerate(coefficients[: order + 1]))

    row = extrapolation_row(anchors, order, horizon, differences="divided", basis="newton")
    centre = anchors[0]
    values = [polynomial(Fraction(a - centre, 100)) for a in anchors]
    predicted = sum(Fraction(w) * v for w, v in zip(row, values, strict=True))
    expected = polynomial(Fraction(horizon, 100))
    scale = sum(abs(Fraction(w) * v) for w, v in zip(row, values, strict=True)) + 1
    assert abs(predicted - expected) <= scale * Fraction(1, 10**11)


@given(st.integers(1, 9), st.integers(0, 4), st.floats(-5, 12))
def test_rules_agree_on_even_gaps(gap, order, horizon):
    anchors = tuple(gap * a for a in range(order, -1, -1))
    recursive = extrapolation_row(anchors, order, horizon, differences="recursive")
    divided = extrapolation_row(anchors, order, horizon, differences="divided")
    assert recursive == pytest.approx(divided, rel=1e-9, abs=1e-9)


@given(increasing, st.floats(-5, 12), st.sampled_from(["recursive", "divided"]), st.sampled_from(["taylor", "newton"]))
def test_rows_reproduce_constants(anchors, horizon, differences, basis):
    for order in range(len(anchors)):
        row = extrapolation_row(anchors, order, horizon, differences=differences, basis=basis)
        assert sum(row) == pytest.approx(1, abs=1e-9 * max(map(abs, row)))


def test_order_needs_anchors():
    with pytest.raises(ValueError, match=r"order 7 needs 8 anchors, got 3"):
        difference_rows((10, 2, 1), 7)


def test_distinct_rows_merge_in_order():
    rows = [(1.0, 0.0), (2.0, -1.0), (1.0, -0.0), (2.0, -1.0)]
    assert distinct_rows(rows) == ([0, 1], [0, 1, 0, 1])
