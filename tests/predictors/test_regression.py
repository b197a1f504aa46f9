"""Least squares families against numpy, and their limits."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.core.weights import extrapolation_row
from tapstudy.predictors.chebyshev import Chebyshev, chebyshev_values
from tapstudy.predictors.least_squares import LeastSquares
from tests.table import each_row

increasing = st.lists(st.integers(0, 40), min_size=3, max_size=6, unique=True).map(lambda a: sorted(a, reverse=True))


@given(increasing, st.integers(1, 8), st.integers(0, 2), st.floats(0.001, 10), st.integers(0, 99))
def test_least_squares_against_normal_equations(anchors, distance, degree, ridge, seed):
    values = np.random.default_rng(seed).normal(size=len(anchors))
    (row,) = LeastSquares((degree,), window=6, ridge=ridge).rows(anchors, anchors[0] + distance)
    span = anchors[0] - anchors[-1]
    design = np.array([[((a - anchors[0]) / span) ** i for i in range(degree + 1)] for a in anchors])
    penalty = ridge * np.diag([0.0] + [1.0] * degree)
    coefficients = np.linalg.solve(design.T @ design + penalty, design.T @ values)
    expected = sum(c * (distance / span) ** i for i, c in enumerate(coefficients))
    assert np.dot(row, values) == pytest.approx(expected, rel=1e-8, abs=1e-8 * (1 + np.abs(row).max()))
    assert sum(row) == pytest.approx(1, abs=1e-9 * (1 + np.abs(row).max()))


@given(increasing, st.integers(1, 8), st.integers(0, 2), st.lists(st.integers(-5, 5), min_size=3, max_size=3))
def test_least_squares_without_ridge_reproduces_polynomials(anchors, distance, degree, coefficients):
    (row,) = LeastSquares((degree,), window=6).rows(anchors, anchors[0] + distance)

    def polynomial(t):
        return sum(c * (t / 40) ** i for i, c in enumerate(coefficients[: degree + 1]))

    predicted = np.dot(row, [polynomial(a) for a in anchors])
    assert predicted == pytest.approx(polynomial(anchors[0] + distance), abs=1e-9 * (1 + np.abs(row).max()))


def test_as_many_anchors_as_coefficients_is_interpolation():
    anchors = (18, 10, 7)
    newton = extrapolation_row(anchors, 2, 5, differences="divided", basis="newton")
    assert LeastSquares((2,), window=3).rows(anchors, 23)[0] == pytest.approx(newton, rel=1e-10)
    small = LeastSquares((2,), window=3, ridge=1e-12).rows(anchors, 23)[0]
    assert small == pytest.approx(newton, rel=1e-6)
    interpolation = Chebyshev(2, ridge=0).rows(anchors, 23)[0]
    assert interpolation == pytest.approx(newton, rel=1e-10)
    assert Chebyshev(9, ridge=0).rows(anchors, 23)[0] == pytest.approx(newton, rel=1e-10)  # capped


def test_shift_and_few_anchors():
    shifted = LeastSquares((1,), shifts=(0, 3)).rows((9, 4, 1), 14)
    assert shifted[1] == pytest.approx(LeastSquares((1,)).rows((9, 4, 1), 11)[0])
    assert LeastSquares((0, 1, 2)).rows((5,), 9) == [pytest.approx((1.0,))] * 3
    one, two = LeastSquares((1, 2)).rows((5, 3), 9)
    assert one == two == pytest.approx((3.0, -2.0))
    assert Chebyshev().rows((5,), 9) == [(1.0,)]


@given(st.floats(-1, 1))
def test_chebyshev_polynomials_are_cosines(x):
    assert chebyshev_values(6, x) == pytest.approx([np.cos(n * np.arccos(x)) for n in range(7)], abs=1e-12)


@given(st.sets(st.integers(1, 40), min_size=1, max_size=12), st.integers(1, 8), st.sampled_from([0.0, 0.5, 1.0]))
def test_spectrum_as_published(later, distance, blend):
    """tau = 2 i / 50 - 1, M = 4, ridge 0.1, all full steps from step 0 on."""
    anchors = [*sorted(later, reverse=True), 0]
    step = anchors[0] + distance
    (row,) = Chebyshev(blend=blend, num_steps=50).rows(anchors, step)
    design = np.array([[np.cos(n * np.arccos(2 * a / 50 - 1)) for n in range(5)] for a in anchors])
    target = np.array([np.cos(n * np.arccos(2 * step / 50 - 1)) for n in range(5)])
    curve = target @ np.linalg.inv(design.T @ design + 0.1 * np.eye(5)) @ design.T
    line = np.zeros(len(anchors))
    line[:2] = 1 + distance / (anchors[0] - anchors[1]), -distance / (anchors[0] - anchors[1])
    assert row == pytest.approx(blend * curve + (1 - blend) * line, abs=1e-9)


@each_row(
    ("make", "message"),
    [
        (lambda: LeastSquares(()), "degrees"),
        (lambda: LeastSquares((5,)), "window of at least 6"),
        (lambda: LeastSquares(ridge=-1), "ridge must be at least 0"),
        (lambda: Chebyshev(ridge=float("nan")), "ridge must be at least 0"),
        (lambda: Chebyshev(window=1), "window must be at least 2"),
        (lambda: Chebyshev(blend=2), "blend must lie in"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
