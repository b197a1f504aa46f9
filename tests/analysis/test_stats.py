from itertools import pairwise, product

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tapstudy.analysis.stats import (
    holm,
    mean_interval,
    paired_difference,
    paired_interval,
    sign_flip_pvalue,
    with_interval,
)
from tests.table import each_row


def test_interval_covers_the_mean():
    """A 95 % interval holds the true mean in about 95 % of 200 draws of 40 images."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        _, low, high = mean_interval(rng.normal(3, 2, 40), resamples=400)
        hits += low <= 3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_interval_is_deterministic_and_ordered():
    values = np.random.default_rng(1).exponential(size=30)
    mean, low, high = mean_interval(values)
    assert (mean, low, high) == mean_interval(values)
    assert low < mean == values.mean() < high
    assert mean_interval(np.ones(5)) == (1, 1, 1)


@each_row("values", [np.ones(1), np.ones((2, 2)), np.array([1.0, np.inf])])
def test_no_interval(values):
    with pytest.raises(ValueError, match=r"interval needs|not finite"):
        mean_interval(values)


def test_with_interval_keeps_other_dims():
    values = xr.DataArray(np.random.default_rng(0).normal(size=(5, 3)), dims=("sample", "distance"))
    found = with_interval(values)
    assert found.dims == ("distance", "bound")
    np.testing.assert_allclose(found.sel(bound="mean"), values.mean("sample"))
    xr.testing.assert_equal(found, with_interval(values.chunk(distance=1)))
    with pytest.raises(ValueError, match="needs that dimension"):
        with_interval(values.mean("sample"))


def test_pairing_takes_out_what_images_share():
    rng = np.random.default_rng(0)
    image, noise = rng.normal(0, 5, 20), rng.normal(0, 0.1, (2, 20))
    a, b = image + noise[0] + 1, image + noise[1]
    mean, low, high = paired_interval(a, b)
    assert low < 1 < high
    assert mean == pytest.approx(a.mean() - b.mean())
    assert high - low < 0.2
    with pytest.raises(ValueError, match="one of each per image"):
        paired_interval(a, b[:-1])


def test_paired_difference_is_for_the_same_images():
    rng = np.random.default_rng(0)
    a, b = (
        xr.DataArray(v, dims=("sample", "step"), coords={"seed": ("sample", range(6))})
        for v in rng.normal(size=(2, 6, 3))
    )
    found = paired_difference(a, b)
    assert found.dims == ("step", "bound")
    for i in range(3):
        np.testing.assert_allclose(found[i], paired_interval(a.values[:, i], b.values[:, i]))
    with pytest.raises(ValueError, match="'seed' differs along 'sample'"):
        paired_difference(a, b.isel(sample=[1, 0, 2, 3, 4, 5]))
    with pytest.raises(ValueError, match="sample"):
        paired_difference(a, b.drop_vars("seed").isel(sample=slice(5)))


@each_row("size", [2, 5, 9])
def test_sign_flips_are_all_counted(size):
    differences = np.random.default_rng(size).normal(0.4, 1, size)
    means = np.array([np.mean(differences * flip) for flip in product([-1, 1], repeat=size)])
    expected = np.mean(np.abs(means) >= abs(differences.mean()) - 1e-12)
    assert sign_flip_pvalue(differences) == pytest.approx(expected)


def test_sign_flips_of_equal_signs():
    assert sign_flip_pvalue(np.array([1.0, 2, 3, 4, 5])) == 2 / 32
    assert sign_flip_pvalue(-np.arange(1.0, 15)) == 2 / 2**14


def test_many_sign_flips_are_drawn():
    """Close to Student's test on normal differences; never zero."""
    differences = np.random.default_rng(3).normal(0.3, 1, 40)
    assert sign_flip_pvalue(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.015)
    assert sign_flip_pvalue(differences) == sign_flip_pvalue(differences)
    assert 0 < sign_flip_pvalue(np.ones(40) + differences / 100) < 2e-4


def test_sign_flips_need_images():
    with pytest.raises(ValueError, match="at least two images"):
        sign_flip_pvalue(np.ones(1))


def test_adjusted_by_hand():
    p = [[0.01, 0.04], [0.03, 0.005]]
    np.testing.assert_allclose(holm(p), [[0.03, 0.06], [0.06, 0.02]])
    np.testing.assert_allclose(holm([0.5, 0.9, 0.6]), [1, 1, 1])


@given(arrays(float, st.integers(1, 12), elements=st.floats(0, 1)))
def test_adjusted_values_are_ordered(p):
    """p <= Holm <= Bonferroni, and the order of the tests stays."""
    rows = [p, holm(p), np.minimum(p * len(p), 1)]
    for less, more in pairwise(rows):
        assert (less <= more + 1e-12).all()
    for adjusted in rows[1:]:
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


@each_row("p", [[0.1, 1.5], [0.1, np.nan]])
def test_adjusting_needs_probabilities(p):
    with pytest.raises(ValueError, match=r"p-values must be in \[0, 1\]"):
        holm(p)
