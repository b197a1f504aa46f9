"""AB-Cache and FoCa against step-by-step simulations on numbers."""

from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.predictors.adams_bashforth import AdamsBashforth
from tapstudy.predictors.foca import FoCa
from tests.table import each_row

increasing = st.lists(st.integers(0, 30), min_size=2, max_size=5, unique=True).map(lambda a: sorted(a, reverse=True))
numbers = st.lists(st.integers(-9, 9), min_size=5, max_size=5)


def apply(row, values):
    return sum(w * v for w, v in zip(row, values, strict=True))


def simulate(anchors, values, step, rule):
    """Values of all steps so far, newest last; between the two oldest anchors they lie on a line."""
    true = dict(zip(anchors, values, strict=True))
    last, first = anchors[-1], anchors[-2]
    held = [true[last] + (true[first] - true[last]) * (at - last) / (first - last) for at in range(last, first + 1)]
    for now in range(first + 1, step + 1):
        full = [at for at in anchors if at < now]
        held.append(true[now] if now in true else rule(held, full, true))
    return held[-1]


@given(increasing, numbers, st.integers(1, 8), st.integers(0, 3))
def test_adams_bashforth_feeds_its_predictions_back(anchors, values, distance, order):
    values = values[: len(anchors)]

    def rule(held, full, true):
        k = min(order + 1, len(held))
        return sum((-1) ** (j + 1) * comb(k, j) * held[-j] for j in range(1, k + 1))

    (row,) = AdamsBashforth(orders=(order,)).rows(anchors, anchors[0] + distance)
    scale = sum(abs(w * v) for w, v in zip(row, values, strict=True)) + max(map(abs, row)) + 1
    expected = simulate(anchors, values, anchors[0] + distance, rule)
    assert apply(row, values) == pytest.approx(expected, abs=1e-9 * scale)
    assert sum(row) == pytest.approx(1, abs=1e-9 * scale)


def test_adams_bashforth_by_hand():
    # 2 f_0 - f_1, then twice that slope
    assert AdamsBashforth().rows((2, 1), 4) == [(3.0, -2.0)]
    # taken for neighbours, the gap of 6 and the distance change nothing
    family = AdamsBashforth(orders=(0, 1, 2), history="anchors")
    assert family.rows((12, 6, 0), 13) == family.rows((12, 6, 0), 17)
    assert family.rows((12, 6, 0), 17) == [(1.0, 0.0, 0.0), (2.0, -1.0, 0.0), (3.0, -3.0, 1.0)]
    assert family.rows((12, 6), 13)[2] == (2.0, -1.0)  # capped
    assert AdamsBashforth(orders=(4,), history="anchors").rows((4, 3, 2, 1, 0), 5) == [(5.0, -10.0, 10.0, -5.0, 1.0)]


@pytest.mark.parametrize(
    ("slope", "corrector", "normalise"),
    [("three-point", True, True), ("two-point", True, False), ("three-point", False, False)],
)
@given(anchors=increasing, values=numbers, distance=st.integers(1, 8))
def test_foca_step_by_step(slope, corrector, normalise, anchors, values, distance):
    values = values[: len(anchors)]

    def rule(held, full, true):
        if slope == "three-point" and len(held) > 2:
            derivative = (3 * held[-1] - 4 * held[-2] + held[-3]) / 2
        else:
            derivative = held[-1] - held[-2]
        predictor = 4 / 3 * held[-1] - 1 / 3 * held[-2] + 2 / 3 * derivative
        if not corrector:
            return predictor
        last = (true[full[0]] - true[full[1]]) / ((full[0] - full[1]) if normalise else 1)
        return held[-1] + (last + (predictor - held[-1])) / 2

    (row,) = FoCa(slope, corrector, normalise).rows(anchors, anchors[0] + distance)
    scale = max(map(abs, row)) * 10 + 1
    expected = simulate(anchors, values, anchors[0] + distance, rule)
    assert apply(row, values) == pytest.approx(expected, abs=1e-9 * scale)
    assert sum(row) == pytest.approx(1, abs=1e-9 * scale)


@given(increasing, st.integers(1, 8), st.sampled_from(["three-point", "two-point"]), st.booleans())
def test_foca_reproduces_lines(anchors, distance, slope, corrector):
    (row,) = FoCa(slope, corrector).rows(anchors, anchors[0] + distance)
    scale = max(map(abs, row)) * 30 + 1
    assert apply(row, anchors) == pytest.approx(anchors[0] + distance, abs=1e-9 * scale)


def test_foca_bdf_weights():
    """The weights that L2P quotes."""
    assert FoCa(corrector=False).rows((2, 1, 0), 3)[0] == pytest.approx((7 / 3, -5 / 3, 1 / 3))
    assert FoCa().rows((3,), 5) == [(1.0,)]


@each_row(
    ("make", "message"),
    [
        (lambda: AdamsBashforth(orders=()), "orders"),
        (lambda: AdamsBashforth(orders=(6,)), "window of at least 7"),
        (lambda: FoCa(window=1), "window must be at least 2"),
    ],
)
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
