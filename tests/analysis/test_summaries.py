import dask
import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.proxy_correlation import proxy_correlation
from tapstudy.analysis.stats import mean_interval
from tapstudy.analysis.summaries import image_means, summarise
from tests.analysis.synthetic import planted_scores

NAN = np.nan


def small():
    """Two images, two steps, three tokens."""
    values = [[[1.0, 2, 3], [NAN, 5, 7]], [[10, 20, 30], [NAN, NAN, NAN]]]
    return xr.Dataset(
        {"a": (("sample", "step", "token"), values, {"long_name": "a", "units": "1"})},
        coords={"step": [3, 4], "distance": (("sample", "step"), [[1, 2], [1, 0]])},
    )


def test_by_hand():
    found = summarise(small(), "distance")
    assert found["a"].dims == ("distance", "bound")
    assert found["distance"].values.tolist() == [1, 2]  # distance 0 has no values
    np.testing.assert_allclose(found["a"][0], [11, 2, 20])  # two images: the bounds are the two means
    np.testing.assert_allclose(found["a"][1], [6, NAN, NAN])
    assert found["num_values"].sel(measure="a").values.tolist() == [6, 2]
    assert found["num_images"].sel(measure="a").values.tolist() == [2, 1]
    assert found["a"].attrs == {"long_name": "a", "units": "1"}


def test_images_count_the_same_whatever_their_tokens():
    """Image 0 has one token in the class, image 1 has five: the mean is that of the images."""
    kind = xr.DataArray(
        [[[0.0, 1, 1], [1, 1, NAN]], [[0, 0, 0], [1, 1, 1]]], dims=("sample", "step", "token"), name="kind"
    )
    found = image_means(small(), kind)
    np.testing.assert_allclose(found["a"], [[1, 10 / 3], [20, NAN]])
    np.testing.assert_array_equal(found["num_values"].sel(measure="a"), [[1, 3], [3, 0]])
    assert summarise(small(), kind)["a"].sel(kind=0, bound="mean") == 10.5


def test_labels_over_fewer_dims_and_text():
    kind = xr.DataArray(np.array(["edge", "flat", "edge"]), dims="token")
    found = image_means(small(), kind)
    assert found["group"].values.tolist() == ["edge", "flat"]
    np.testing.assert_allclose(found["a"], [[11 / 3, 3.5], [20, 20]])
    new = kind.astype(np.dtypes.StringDType())
    np.testing.assert_array_equal(image_means(small(), new)["a"], found["a"])


@pytest.mark.parametrize("by", ["distance", "context"])
def test_equals_a_loop(by):
    per_token = proxy_correlation(planted_scores(0.6, samples=4))
    found = summarise(per_token, by)
    labels = per_token[by].broadcast_like(per_token["kendall"]).transpose(*per_token["kendall"].dims).values
    groups = [g for g in np.unique(labels) if np.isfinite(per_token["kendall"].values[labels == g]).any()]
    assert found[by].values.tolist() == groups
    for i, group in enumerate(groups):
        means = [np.nanmean(values[labels[b] == group]) for b, values in enumerate(per_token["kendall"].values)]
        np.testing.assert_allclose(found["kendall"][i], mean_interval(np.array(means)))


def test_chunks_change_nothing_and_are_read_once():
    scores = planted_scores(0.6, samples=4)
    edge = xr.DataArray(np.random.default_rng(0).random((4, 16)) < 0.5, dims=("sample", "token"), name="edge")
    lazy = proxy_correlation(scores.chunk({"sample": 1, "context": 1, "step": 5}))
    calls = []

    def once(graph, keys, **kwargs):
        calls.append(keys)
        return dask.get(graph, keys, **kwargs)

    for by, lazy_by in (("distance", "distance"), (edge, edge), (edge, edge.chunk(sample=2))):
        expected = summarise(proxy_correlation(scores), by)
        calls.clear()
        with dask.config.set(scheduler=once):
            xr.testing.assert_allclose(summarise(lazy, lazy_by), expected)
        assert len(calls) <= 2  # the labels, then the values


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"at least two samples \(images\), got .*'sample': 1"):
        summarise(small().isel(sample=[0]), "distance")
    with pytest.raises(ValueError, match=r"groups by 'depth' need that coordinate, got \['distance', 'step'\]"):
        summarise(small(), "depth")
    with pytest.raises(ValueError, match="groups by 'sample'"):
        summarise(small().assign_coords(sample=[0, 1]), "sample")
    with pytest.raises(ValueError, match=r"labels have the dimensions \['frame'\]"):
        summarise(small(), xr.DataArray([0, 1], dims="frame"))
    with pytest.raises(ValueError, match="token"):
        summarise(small(), xr.DataArray([0, 1], dims="token"))
    with pytest.raises(ValueError, match=r"image_means: b must have .*'sample'"):
        summarise(small().assign(b=("token", [1.0, 2, 3])), "distance")
