"""Masks have the passes they were asked for, and the best mask is the best of all masks."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy.analysis.mask_search import best_path
from tapstudy.analysis.schedules import best_mask, end_dense_mask, even_mask, masks, start_dense_mask
from tapstudy.core.schedule import Schedule
from tapstudy.predictors.taylor import TaylorFamily
from tests.analysis.trajectories import make_features, predicted


@given(st.integers(1, 80), st.data())
def test_masks(num_steps, data):
    passes = data.draw(st.integers(1, num_steps))
    power = data.draw(st.floats(1, 6))
    even = even_mask(num_steps, passes)
    start = start_dense_mask(num_steps, passes, power=power)
    end = end_dense_mask(num_steps, passes, power=power)
    for mask in (even, start, end, *masks(num_steps, passes).values()):
        assert mask[0] == 0
        assert list(mask) == sorted(set(mask))
        assert len(mask) == passes
        assert mask[-1] < num_steps
    gaps = np.diff([*even, num_steps])
    assert gaps.max() - gaps.min() <= 1
    assert sorted(np.diff([*start, num_steps])) == sorted(np.diff([*end, num_steps]))
    assert all(s <= e for s, e in zip(start, even, strict=True))


def test_masks_by_hand():
    assert even_mask(10, 4) == (0, 2, 5, 7)
    assert start_dense_mask(16, 4) == (0, 1, 4, 9)
    assert end_dense_mask(16, 4) == (0, 7, 12, 15)
    assert masks(50, 8)["S(8,3)"] == Schedule(8, 3).steps(50)
    with pytest.raises(ValueError, match="between 1 and 5 full ones, got 6"):
        even_mask(5, 6)
    with pytest.raises(ValueError, match="power must be at least 1"):
        start_dense_mask(5, 2, power=0.5)


def naive_cost(data, mask, order):
    """From the features themselves, trajectory by trajectory."""
    values = data["residual"].values.astype(np.float64)
    values = values.reshape(-1, *values.shape[-3:])
    weights = np.diff(data["sigma"].values, append=0) ** 2
    labels = (TaylorFamily() if order == "best" else TaylorFamily((order,), (0,))).labels
    total = 0.0
    for step in set(range(values.shape[1])) - set(mask):
        shares = np.zeros(len(labels))
        k = step - max(a for a in mask if a < step)
        for one in values:
            size = np.mean([(x**2).sum() for x in one])
            for p, label in enumerate(labels):
                guess = predicted(one, step, mask, label.order, k - label.shift)
                shares[p] += ((guess - one[step]) ** 2).sum() / size / len(values)
        total += weights[step] * shares.min()
    return total


@pytest.mark.parametrize("order", [0, 2, "best"])
def test_no_mask_is_cheaper(order):
    data = make_features(samples=2, contexts=0, steps=8, tokens=2, channels=3, seed=1)
    costs = {(0, *rest): naive_cost(data, (0, *rest), order) for rest in combinations(range(1, 8), 2)}
    found = best_mask(data, 3, order=order)
    best = min(costs, key=costs.get)
    assert tuple(found["full_steps"].values) == best
    assert np.flatnonzero(found["mask"]).tolist() == list(best)
    np.testing.assert_allclose(found["cost"], costs[best], rtol=1e-6)
    for name in found["schedule"].values:
        mask = tuple(np.flatnonzero(found["schedule_mask"].sel(schedule=name)))
        np.testing.assert_allclose(found["schedule_cost"].sel(schedule=name), costs[mask], rtol=1e-6)


@given(st.integers(0, 2), st.integers(4, 16))
@settings(max_examples=10)
def test_dense_where_the_trajectory_is_fast(order, start):
    """Constant but for a random walk over eight steps; solver steps of equal lengths."""
    rng = np.random.default_rng(start)
    moves = np.zeros((30, 4, 5))
    moves[start : start + 8] = rng.normal(size=(8, 4, 5))
    data = make_features(samples=1, contexts=0, steps=30, tokens=4, channels=5)
    data = data.assign_coords(sigma=("step", np.linspace(1, 0, 31)[:-1]))
    data["residual"].values[0] = 1 + np.cumsum(moves, axis=0)
    mask = best_mask(data, 8, order=order)["full_steps"].values
    assert ((mask >= start) & (mask < start + 9)).sum() >= 5


def windows_of(windows, mask):
    """Cost of every window of a mask, the worst first; infinite where one is too long."""
    count, longest = len(windows), windows.shape[-1]
    found = []
    for i, start in enumerate(mask):
        gap = start - mask[i - 1] if i else 0
        before = mask[i - 1] - mask[i - 2] if i > 1 else 0
        length = (*mask, count)[i + 1] - start
        fits = max(gap, before, length) <= longest
        found.append(windows[start, gap, before, length - 1] if fits else np.inf)
    return sorted(found, reverse=True)


@given(st.integers(2, 8), st.data())
def test_the_path_is_the_best_of_all(num_steps, data):
    """Of whole numbers, so that windows tie; no longer than some, and some that are not there."""
    passes, longest = data.draw(st.integers(1, num_steps)), data.draw(st.integers(1, num_steps))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    windows = rng.integers(0, 5, (num_steps, longest + 1, longest + 1, longest)).astype(float)
    windows[rng.random(windows.shape) < 0.1] = np.inf
    masks = [(0, *rest) for rest in combinations(range(1, num_steps), passes - 1)]
    all_costs = [windows_of(windows, mask) for mask in masks]
    if min(map(sum, all_costs)) == np.inf:
        for rule in ("sum", "minimax"):
            with pytest.raises(ValueError, match=f"no mask of {passes} full steps at most {longest} apart"):
                best_path(windows, passes, rule=rule)
        return
    mask, cost = best_path(windows, passes)
    assert sum(windows_of(windows, mask)) == cost == min(map(sum, all_costs))
    mask, cost = best_path(windows, passes, rule="minimax")
    assert windows_of(windows, mask) == min(all_costs)
    assert cost == min(all_costs)[0]


def test_chunks_of_steps_and_samples():
    data = make_features(samples=3, steps=12)
    whole = best_mask(data, 4)
    parts = best_mask(data.chunk(sample=1, context=1, step=5), 4)
    np.testing.assert_array_equal(whole["full_steps"], parts["full_steps"])
    np.testing.assert_allclose(whole["schedule_cost"], parts["schedule_cost"])
    assert all({"long_name", "units"} <= set(array.attrs) for array in whole.data_vars.values())


def test_what_has_no_best_mask():
    data = make_features()
    with pytest.raises(ValueError, match="order must be 0, 1, 2 or 'best', got 3"):
        best_mask(data, 4, order=3)
    with pytest.raises(ValueError, match="'sigma'"):
        best_mask(data.drop_vars("sigma"), 4)
