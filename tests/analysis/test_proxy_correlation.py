import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tapstudy.analysis.proxy_correlation import MEASURES, proxy_correlation, shuffled_proxy, token_measures
from tapstudy.analysis.stats import mean_interval, with_interval
from tests.analysis.synthetic import expected_kendall, expected_spearman, planted_scores, score_dataset
from tests.table import each_row

CHUNKS = {"sample": 1, "context": 1, "step": 5}


def spearman(scores):
    return proxy_correlation(scores, measures=("spearman",))["spearman"]


def make_scores(proxy, truth, distinct):
    dims = ("sample", "step", "token", "predictor")
    return xr.Dataset(
        {"proxy_loss": (dims, proxy), "true_error": (dims, truth), "is_distinct": (("step", "predictor"), distinct)},
        coords={"step": [3, 7]},
    )


def naive(proxy, truth):
    """The measures of one token, over its distinct predictors."""
    chosen, best = np.argmin(proxy), np.argmin(truth)
    regret = truth[chosen] - truth[best]
    return {
        "spearman": stats.spearmanr(proxy, truth).statistic,
        "kendall": stats.kendalltau(proxy, truth).statistic,
        "pearson": stats.pearsonr(proxy, truth).statistic,
        "log_pearson": stats.pearsonr(np.log(proxy), np.log(truth)).statistic,
        "top1": float(chosen == best),
        "regret": regret,
        "normalised_regret": regret / np.mean([error - truth[best] for error in truth]),
    }


def test_every_measure_equals_scipy_with_ties_and_masks():
    """Integers tie often; the mask differs by sample, context and step."""
    rng = np.random.default_rng(0)
    proxy, truth = rng.integers(1, 7, (2, 2, 2, 6, 3, 8)).astype(float)
    proxy[..., 7], truth[..., 7] = 8, 0.5  # no list is constant
    distinct = rng.random((2, 2, 6, 8)) < 0.7
    distinct[..., [0, 7]] = True
    distinct[..., 3] |= distinct.sum(-1) < 3
    truth[..., 0] = 9
    scores = score_dataset(proxy, truth, distinct=distinct)
    found = proxy_correlation(scores, measures=list(MEASURES))
    assert found["kendall"].dims == ("sample", "context", "step", "token")
    skipped = scores["is_full"].values[0, 0] == 0
    assert skipped.sum() == 3
    for b, c, i, n in np.ndindex(2, 2, 6, 3):
        kept = distinct[b, c, i]
        one = found.isel(sample=b, context=c, step=i, token=n)
        if not skipped[i]:
            assert all(np.isnan(one[name]) for name in MEASURES)
            continue
        for name, value in naive(proxy[b, c, i, n, kept], truth[b, c, i, n, kept]).items():
            np.testing.assert_allclose(one[name], value, atol=1e-12, err_msg=name)


def test_spearman_equals_scipy_where_the_mask_is_common():
    rng = np.random.default_rng(0)
    proxy, truth = rng.integers(0, 6, (2, 3, 2, 4, 7)).astype(float)
    distinct = np.ones((2, 7), bool)
    distinct[1, [1, 4]] = False
    found = spearman(make_scores(proxy, truth, distinct)).transpose("sample", "step", "token")
    for s, i, n in np.ndindex(3, 2, 4):
        kept = distinct[i]
        expected = stats.spearmanr(proxy[s, i, n, kept], truth[s, i, n, kept]).statistic
        np.testing.assert_allclose(found[s, i, n], expected, atol=1e-12)


def test_perfect_reversed_and_noise():
    rng = np.random.default_rng(0)
    truth = rng.random((40, 2, 50, 9))
    distinct = np.ones((2, 9), bool)
    perfect = proxy_correlation(make_scores(np.exp(truth), truth, distinct))
    for name, best in (("spearman", 1), ("kendall", 1), ("top1", 1), ("regret", 0), ("normalised_regret", 0)):
        assert perfect[name].min() == pytest.approx(best)
        assert perfect[name].max() == pytest.approx(best)
    assert spearman(make_scores(-truth, truth, distinct)).max() == pytest.approx(-1)
    noise = proxy_correlation(make_scores(rng.random(truth.shape), truth, distinct)).mean(["step", "token"])
    for name, chance in (
        ("spearman", 0), ("kendall", 0), ("pearson", 0), ("top1", 1 / 9), ("normalised_regret", 1)
    ):  # fmt: skip
        _, low, high = mean_interval(noise[name].values)
        assert low < chance < high, name


@each_row("fidelity", [0.0, 0.4, 0.8])
def test_planted_fidelity_is_found(fidelity):
    """Inside the interval over images, and within 0.02 of what theory says for nine predictors."""
    scores = planted_scores(fidelity, samples=40, seed=1)
    found = proxy_correlation(scores).mean(["context", "step", "token"])
    for name, expected in (("spearman", expected_spearman(fidelity, 9)), ("kendall", expected_kendall(fidelity))):
        mean, low, high = with_interval(found[name]).values
        assert low < expected < high
        assert mean == pytest.approx(expected, abs=0.02)


def test_lazy_and_a_block_at_a_time():
    scores = planted_scores(0.5)
    expected = proxy_correlation(scores)
    with dask.config.set(scheduler=lambda *_, **__: pytest.fail("computed")):
        found = proxy_correlation(scores.chunk(CHUNKS))
    assert found["regret"].chunks == ((1,) * 6, (1, 1), (5, 5, 2), (16,))
    xr.testing.assert_identical(found.compute(), expected)
    xr.testing.assert_identical(proxy_correlation(scores.chunk(predictor=4)).compute(), expected)


def test_variables_say_what_they_are():
    found = proxy_correlation(planted_scores(0.5, samples=1), measures=list(MEASURES))
    assert all(set(values.attrs) == {"long_name", "units"} for values in found.data_vars.values())
    assert found["distance"].dims == ("sample", "context", "step")


@each_row(("count", "undefined"), [(0, 7), (1, 7), (2, 4), (3, 0)])
def test_too_few_predictors(count, undefined):
    rng = np.random.default_rng(0)
    distinct = np.zeros((2, 5), bool)
    distinct[:, 1 : 1 + count] = True
    found = proxy_correlation(make_scores(*rng.random((2, 1, 2, 3, 5)), distinct), measures=list(MEASURES))
    assert sum(bool(values.isnull().all()) for values in found.data_vars.values()) == undefined


def test_constant_lists_and_zero_losses_are_undefined():
    """0.1 + 0.2 three times: the mean rounds, but the list is constant."""
    truth = np.full((1, 2, 1, 3), 0.1 + 0.2)
    found = proxy_correlation(make_scores(np.array([[[[0.0, 1, 2]]] * 2]), truth, np.ones((2, 3), bool)))
    assert all(found[name].isnull().all() for name in ("spearman", "kendall", "pearson", "normalised_regret"))
    assert (found["regret"] == 0).all()
    rising = np.array([[[[0.0, 1, 2]]] * 2])
    found = proxy_correlation(make_scores(rising, rising, np.ones((2, 3), bool)), measures=["pearson", "log_pearson"])
    assert found["pearson"].values == pytest.approx(1)
    assert found["log_pearson"].isnull().all()


def test_ties_go_to_the_first_predictor_and_missing_losses_count_for_nothing():
    proxy = np.array([[2.0, 1, 1], [np.nan, 1, 2], [1, 1, 5]])
    truth = np.array([[0.0, 5, 3], [1, 1, 2], [4, 4, 9]])
    top1, regret = token_measures(proxy, truth, np.ones(3, bool), measures=("top1", "regret"))
    np.testing.assert_array_equal(regret, [5, np.nan, 0])
    np.testing.assert_array_equal(top1, [0, np.nan, 1])
    masked = token_measures(proxy, truth, np.array([False, True, True]), measures=("top1", "regret"))
    np.testing.assert_array_equal(masked, [[0, 1, 1], [2, 0, 0]])


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.integers(3, 9))
def test_identical_predictors_count_once(seed, predictors):
    rng = np.random.default_rng(seed)
    proxy, truth = rng.integers(1, 5, (2, 4, predictors)).astype(float)
    again = rng.integers(0, predictors, 4)
    mask = np.r_[np.ones(predictors, bool), np.zeros(4, bool)]
    repeated = [np.concatenate([values, values[:, again]], axis=1) for values in (proxy, truth)]
    for a, b in zip(
        token_measures(proxy, truth, np.ones(predictors, bool), measures=list(MEASURES)),
        token_measures(*repeated, mask, measures=list(MEASURES)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_ranks_see_only_the_order(seed):
    """Rank correlations and the choice do not change when a loss is measured on another scale; infinity is largest."""
    proxy, truth = np.random.default_rng(seed).integers(1, 6, (2, 3, 7)).astype(float)
    names = ("spearman", "kendall", "top1")
    expected = token_measures(proxy, truth, np.ones(7, bool), measures=names)
    curved = token_measures(np.exp(3 * proxy), np.where(truth == 5, np.inf, truth**3), np.ones(7, bool), measures=names)
    np.testing.assert_allclose(curved, expected, atol=1e-12)


def test_many_tokens_are_cut_without_seams():
    proxy, truth = np.random.default_rng(0).random((2, 30_000, 9))
    whole = token_measures(proxy, truth, np.ones(9, bool), measures=["kendall"])[0]
    parts = [token_measures(p, t, np.ones(9, bool), measures=["kendall"])[0] for p, t in zip(
        np.array_split(proxy, 7), np.array_split(truth, 7), strict=True)]  # fmt: skip
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_shuffled_losses_are_those_of_another_token():
    scores = planted_scores(0.9)
    found = shuffled_proxy(scores, seed=0)
    assert "choice" not in found
    xr.testing.assert_identical(found["true_error"], scores["true_error"])
    before, after = (d["proxy_loss"].isel(sample=1, context=0, step=[3, 4]).values for d in (scores, found))
    moved = []
    for i in range(2):
        order = [int(np.flatnonzero((before[i] == row).all(axis=1))[0]) for row in after[i]]
        assert sorted(order) == list(range(16))
        assert all(here != there for here, there in enumerate(order))
        moved.append(order)
    assert moved[0] != moved[1]


def test_shuffling_depends_on_the_seed_alone():
    scores = planted_scores(0.9)
    found = shuffled_proxy(scores, seed=0)
    for chunks in (CHUNKS, {"token": 3}):
        xr.testing.assert_identical(shuffled_proxy(scores.chunk(chunks), seed=0).compute(), found)
    assert not shuffled_proxy(scores, seed=1)["proxy_loss"].equals(found["proxy_loss"])


def test_shuffling_leaves_only_what_tokens_share():
    """Losses drawn for each token alone lose all agreement; losses common to a step keep theirs."""
    scores = planted_scores(0.9, samples=12)
    own = spearman(shuffled_proxy(scores, seed=0)).mean(["context", "step", "token"])
    _, low, high = mean_interval(own.values)
    assert low < 0 < high
    common = scores.copy()
    for name in ("proxy_loss", "true_error"):
        common[name] = scores[name].isel(token=0).broadcast_like(scores[name]).transpose(*scores[name].dims)
    xr.testing.assert_identical(spearman(shuffled_proxy(common, seed=0)), spearman(common))


def test_errors_name_what_is_wrong():
    scores = planted_scores(0.5, samples=1)
    with pytest.raises(ValueError, match=r"unknown measures \['speerman'\]: choose from \['spearman'"):
        proxy_correlation(scores, measures=["speerman"])
    with pytest.raises(ValueError, match="unknown measures"):
        proxy_correlation(scores, measures=[])
    with pytest.raises(ValueError, match=r"proxy_correlation needs .*\['true_error'\] are missing"):
        proxy_correlation(scores.drop_vars("true_error"))
    with pytest.raises(ValueError, match=r"shuffled_proxy: proxy_loss .* lacks \['token'\]"):
        shuffled_proxy(scores.isel(token=0), seed=0)
