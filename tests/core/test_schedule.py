import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.core.schedule import Schedule, mask_text
from tests.table import each_row


@each_row(("interval", "count", "ratio"), [(4, 14, 3.57), (6, 10, 4.98), (8, 8, 6.24)])
def test_published_full_passes(interval, count, ratio):
    steps = Schedule(interval, 3).steps(50)
    assert len(steps) == count
    # the published ratios count the little that a skip step costs
    assert 50 / count == pytest.approx(ratio, rel=0.01)


def test_masks_by_hand():
    assert Schedule(8, 3).steps(50) == (0, 1, 2, 10, 18, 26, 34, 42)
    assert Schedule(3, 1).steps(50)[:4] == (0, 3, 6, 9)
    assert Schedule(4, 2, 2).steps(9) == (0, 1, 5, 7, 8)
    assert mask_text((0, 1, 5), 7) == "FF...F."


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
def test_count_formula(num_steps, interval, warmup):
    steps = Schedule(interval, warmup).steps(num_steps)
    expected = warmup + (num_steps - warmup) // interval if num_steps >= warmup else num_steps
    assert len(steps) == expected
    assert all(Schedule(interval, warmup).is_full(step) for step in steps)
