from itertools import pairwise, product

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from tapstudy.analysis.stats import (
    benjamini_hochberg,
    best_on_held_out,
    clustered_interval,
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


def test_equal_clusters_are_their_means():
    values = np.random.default_rng(0).normal(size=(12, 3))
    found = clustered_interval(values.ravel(), np.repeat(np.arange(12), 3))
    np.testing.assert_allclose(found, mean_interval(values.mean(axis=1)))


def test_unequal_clusters_weigh_by_size():
    """Against a bootstrap written out, which puts the rows of the drawn clusters together."""
    rng = np.random.default_rng(0)
    rows = [rng.normal(i, 1, size) for i, size in enumerate([1, 2, 9, 4, 1, 6, 3, 3])]
    names = [chr(97 + i) for i, row in enumerate(rows) for _ in row]
    mean, low, high = clustered_interval(np.concatenate(rows), names)
    drawn = [np.concatenate([rows[i] for i in rng.integers(0, 8, 8)]).mean() for _ in range(4000)]
    assert mean == pytest.approx(np.concatenate(rows).mean())
    np.testing.assert_allclose((low, high), np.percentile(drawn, [2.5, 97.5]), atol=0.05 * (high - low))


def test_clustered_interval_covers_where_rows_alone_do_not():
    """Ten rows per image share most of their deviation, so rows as units claim far too much."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(25), 10)
    hits = np.zeros(2)
    for _ in range(100):
        values = rng.normal(0, 1, 25)[clusters] + rng.normal(0, 0.3, 250)
        for i, units in enumerate((clusters, np.arange(250))):
            _, low, high = clustered_interval(values, units, resamples=300)
            hits[i] += low <= 0 <= high
    assert hits[0] >= 86
    assert hits[1] <= 60


@each_row(
    ("values", "clusters", "text"),
    [
        ([1.0, 2.0], ["a", "a"], r"at least two clusters \(images\), got 1"),
        ([1.0, 2.0], [0], "every value needs its cluster"),
        ([1.0, np.nan], [0, 1], "1 of 2 values are not finite"),
    ],
)
def test_no_clustered_interval(values, clusters, text):
    with pytest.raises(ValueError, match=text):
        clustered_interval(np.array(values), clusters)


def table():
    return xr.DataArray(
        [[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [9.0, 5.0, 4.0]],
        dims=("sample", "predictor"),
        coords={"seed": ("sample", [7, 8, 9]), "order": ("predictor", [0, 1, 2])},
    )


def test_best_is_chosen_on_held_out_and_seen_on_the_rest():
    for held_out in ([True, True, False], [0, 1]):
        found = best_on_held_out(table(), "predictor", held_out=held_out)
        assert found.values.tolist() == [9.0]
        assert (int(found["predictor"]), int(found["order"]), found["seed"].values.tolist()) == (0, 0, [9])
    found = best_on_held_out(table(), "predictor", held_out=[2])
    assert found.values.tolist() == [3.0, 2.0]
    assert int(found["predictor"]) == 2
    assert int(best_on_held_out(table(), "predictor", held_out=[2], higher_is_better=True)["predictor"]) == 0


def test_best_is_chosen_for_every_other_dim():
    both = xr.concat([table(), -table()], dim=xr.Variable("interval", [4, 8])).chunk(predictor=2)
    found = best_on_held_out(both, "predictor", held_out=[0]).transpose("interval", "sample")
    assert found["predictor"].values.tolist() == [0, 2]
    assert found.values.tolist() == [[1.0, 9.0], [-2.0, -4.0]]


def test_best_on_noise_is_no_better_than_the_rest():
    """Chosen and seen on the same images the best of 50 looks good; on other images it does not."""
    noise = xr.DataArray(np.random.default_rng(0).normal(size=(80, 50)), dims=("sample", "predictor"))
    held_out = np.arange(80) < 40
    _, low, high = mean_interval(best_on_held_out(noise, "predictor", held_out=held_out).values)
    assert low < 0 < high
    assert noise[held_out].mean("sample").min() < -0.25


def test_an_entry_unknown_on_a_held_out_image_is_not_chosen():
    values = table()
    values[0, 0] = np.nan
    assert int(best_on_held_out(values, "predictor", held_out=[0, 1])["predictor"]) == 1
    values[0] = np.nan
    with pytest.raises(ValueError, match="no entry of 'predictor' has a finite mean"):
        best_on_held_out(values, "predictor", held_out=[0, 1])


@each_row(
    ("held_out", "text"),
    [
        ([True] * 3, "3 of 3 images are held out"),
        ([False] * 3, "0 of 3 images are held out"),
        ([], "0 of 3 images are held out"),
        ([True, False], r"one entry per image, 3, got \(2,\)"),
        ([0, 7], r"held_out names \[7\]"),
    ],
)
def test_held_out_must_make_sense(held_out, text):
    with pytest.raises(ValueError, match=text):
        best_on_held_out(table(), "predictor", held_out=held_out)


def test_best_needs_its_dims():
    with pytest.raises(ValueError, match=r"\['method'\] are missing"):
        best_on_held_out(table(), "method", held_out=[0])


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
    """Close to Student's test on normal differences; never zero; the seed decides."""
    differences = np.random.default_rng(3).normal(0.3, 1, 40)
    assert sign_flip_pvalue(differences) == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, abs=0.015)
    assert sign_flip_pvalue(differences, seed=1) == sign_flip_pvalue(differences, seed=1)
    assert 0 < sign_flip_pvalue(np.ones(40) + differences / 100) < 2e-4


def test_sign_flips_need_images():
    with pytest.raises(ValueError, match="at least two images"):
        sign_flip_pvalue(np.ones(1))


def test_adjusted_by_hand():
    p = [[0.01, 0.04], [0.03, 0.005]]
    np.testing.assert_allclose(holm(p), [[0.03, 0.06], [0.06, 0.02]])
    np.testing.assert_allclose(benjamini_hochberg(p), [[0.02, 0.04], [0.04, 0.02]])
    np.testing.assert_allclose(holm([0.5, 0.9, 0.6]), [1, 1, 1])


@given(arrays(float, st.integers(1, 12), elements=st.floats(0, 1)))
def test_adjusted_values_are_ordered(p):
    """p <= Benjamini-Hochberg <= Holm <= Bonferroni, and the order of the tests stays."""
    rows = [p, benjamini_hochberg(p), holm(p), np.minimum(p * len(p), 1)]
    for less, more in pairwise(rows):
        assert (less <= more + 1e-12).all()
    for adjusted in rows[1:]:
        assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= -1e-12).all()


@each_row(("adjust", "p"), list(product([holm, benjamini_hochberg], [[0.1, 1.5], [0.1, np.nan]])))
def test_adjusting_needs_probabilities(adjust, p):
    with pytest.raises(ValueError, match=r"p-values must be in \[0, 1\]"):
        adjust(p)
