import numpy as np
import pytest
import xarray as xr
from scipy import stats

from tapstudy.analysis.proxy_correlation import within_token_spearman
from tapstudy.analysis.stats import mean_interval, with_interval


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


@pytest.mark.parametrize("values", [np.ones(1), np.ones((2, 2)), np.array([1.0, np.inf])])
def test_no_interval(values):
    with pytest.raises(ValueError, match=r"interval needs|not finite"):
        mean_interval(values)


def test_with_interval_keeps_other_dims():
    values = xr.DataArray(np.random.default_rng(0).normal(size=(5, 3)), dims=("sample", "distance"))
    found = with_interval(values)
    assert found.dims == ("distance", "bound")
    np.testing.assert_allclose(found.sel(bound="mean"), values.mean("sample"))


def make_scores(proxy, truth, distinct):
    dims = ("sample", "step", "token", "predictor")
    return xr.Dataset(
        {"proxy_loss": (dims, proxy), "true_error": (dims, truth), "is_distinct": (("step", "predictor"), distinct)},
        coords={"step": [3, 7]},
    )


def test_spearman_equals_scipy_with_ties_and_masks():
    rng = np.random.default_rng(0)
    proxy, truth = rng.integers(0, 6, (2, 3, 2, 4, 7)).astype(float)
    distinct = np.ones((2, 7), bool)
    distinct[1, [1, 4]] = False
    found = within_token_spearman(make_scores(proxy, truth, distinct)).transpose("sample", "step", "token")
    for s, i, n in np.ndindex(3, 2, 4):
        kept = distinct[i]
        expected = stats.spearmanr(proxy[s, i, n, kept], truth[s, i, n, kept]).statistic
        np.testing.assert_allclose(found[s, i, n], expected, atol=1e-12)


def test_spearman_of_perfect_reversed_and_noise():
    rng = np.random.default_rng(0)
    truth = rng.random((40, 2, 50, 9))
    distinct = np.ones((2, 9), bool)
    assert within_token_spearman(make_scores(np.exp(truth), truth, distinct)).min() == pytest.approx(1)
    assert within_token_spearman(make_scores(-truth, truth, distinct)).max() == pytest.approx(-1)
    noise = within_token_spearman(make_scores(rng.random(truth.shape), truth, distinct)).mean(["step", "token"])
    _, low, high = mean_interval(noise.values)
    assert low < 0 < high


def test_spearman_is_undefined_for_two_predictors():
    rng = np.random.default_rng(0)
    distinct = np.zeros((2, 5), bool)
    distinct[:, :2] = True
    assert within_token_spearman(make_scores(*rng.random((2, 1, 2, 3, 5)), distinct)).isnull().all()
