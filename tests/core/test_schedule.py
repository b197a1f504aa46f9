import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.core.schedule import Schedule, full_steps, mask_text


@pytest.mark.parametrize(("interval", "count", "ratio"), [(4, 14, 3.57), (6, 10, 4.98), (8, 8, 6.24)])
def test_published_full_passes(interval, count, ratio):
    steps = full_steps(50, interval=interval, warmup_steps=3)
    assert len(steps) == count
    # the published ratios count the little that a skip step costs
    assert 50 / count == pytest.approx(ratio, rel=0.01)


def test_masks_by_hand():
    assert full_steps(50, interval=8, warmup_steps=3) == (0, 1, 2, 10, 18, 26, 34, 42)
    assert full_steps(50, interval=3, warmup_steps=1)[:4] == (0, 3, 6, 9)
    assert full_steps(9, interval=4, warmup_steps=2, cooldown_steps=2) == (0, 1, 5, 7, 8)
    assert mask_text((0, 1, 5), 7) == "FF...F."


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 12))
def test_count_formula(num_steps, interval, warmup):
    steps = full_steps(num_steps, interval=interval, warmup_steps=warmup)
    expected = warmup + (num_steps - warmup) // interval if num_steps >= warmup else num_steps
    assert len(steps) == expected
    assert all(Schedule(interval, warmup).is_full(step) for step in steps)
