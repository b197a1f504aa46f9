"""The prepared data against the recording."""

import numpy as np
import pytest

from tapstudy.analysis.clean_image import clean_images
from tapstudy.explorer.prepare import prepare, prepare_pair
from tests.table import each_row


def test_scores_are_those_of_the_recording(tiny):
    data = prepare(tiny, samples=[2, 0])
    assert data["number"].values.tolist() == [2, 0]
    assert data["name"].values.tolist() == ["label 3, seed 6", "label 1, seed 4"]
    shared = prepare(tiny.assign_coords(draw=("sample", [0, 1, 0]), draws=("sample", [2, 2, 1])), samples=[1])
    assert shared["name"].values.tolist() == ["draw 1, draws 2, label 2, seed 5"]
    prompts = prepare(tiny.assign_coords(label=("sample", ["red apple", "sun", "fox"])), samples=[1])
    assert prompts["name"].values.tolist() == ["prompt sun, seed 5"]
    assert data.attrs["grid"] == [1, 4, 4]
    for name in ("choice", "proxy_loss", "true_error", "is_full", "distance", "is_distinct"):
        np.testing.assert_array_equal(data[name].values, tiny[name].values[[2, 0]])
    chosen = np.take_along_axis(data["true_error"].values, np.maximum(data["choice"].values, 0)[..., None], -1)[..., 0]
    skipped = data["choice"].values >= 0
    np.testing.assert_array_equal(data["chosen_error"].values[skipped], chosen[skipped])
    np.testing.assert_allclose(
        data["probe_norm"], np.linalg.norm(tiny["probe"].values[[2, 0], :, :, 0], axis=-1), rtol=1e-6
    )


def test_the_image_forms(tiny):
    image = prepare(tiny)["image"]
    assert image.dims == ("sample", "step", "y", "x", "band")
    assert image.attrs["long_name"] == "expected clean image"
    np.testing.assert_allclose(image.values[:, :-1] / 255, clean_images(tiny), atol=0.5 / 255 + 1e-6)
    np.testing.assert_allclose(image.values[:, -1] / 255, tiny["image"].values.clip(0, 1), atol=0.5 / 255 + 1e-6)


def test_without_latents_the_final_image_stands_in(tiny):
    image = prepare(tiny.drop_vars("latent"))["image"]
    assert image.dims == ("sample", "y", "x", "band")
    assert image.attrs["long_name"] == "final image"
    assert "image" not in prepare(tiny.drop_vars("image"))


def test_large_images_shrink(tiny):
    large = tiny.drop_vars(["latent", "image"])
    large["image"] = (("sample", "y", "x", "band"), np.full((3, 600, 300, 3), 0.5, dtype=np.float32))
    image = prepare(large)["image"]
    assert image.shape == (3, 200, 100, 3)
    assert set(np.unique(image.values)) <= {127, 128}


def test_without_contexts_in_frames_and_tokens_in_any_order(tiny):
    one = prepare(tiny.isel(context=0, drop=True))
    assert one["context"].values.tolist() == ["all"]
    np.testing.assert_array_equal(one["regret"].values[:, 0], prepare(tiny)["regret"].values[:, 0])
    shuffled = tiny.isel(token=np.random.default_rng(0).permutation(16))
    np.testing.assert_array_equal(prepare(shuffled)["choice"], prepare(tiny)["choice"])
    token = np.arange(16)
    frames = tiny.drop_vars(["image", "latent"]).assign_coords(
        frame=("token", token // 8), row=("token", token // 4 % 2), col=("token", token % 4)
    )
    assert prepare(frames).attrs["grid"] == [2, 2, 4]


def test_previews_of_a_video(film):
    """Frames of tokens have the pictures at their places; between two previews the one before is shown."""
    image = prepare(film)["image"]
    assert image.dims == ("sample", "step", "frame", "y", "x", "band")
    assert image.attrs["long_name"] == "expected clean image"
    pictures = film["preview_video"].values
    assert (film.sizes["time"], film["frame"].values.max() + 1) == (5, 2)
    for step, formed in enumerate([0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2]):
        np.testing.assert_array_equal(image.values[:, step], pictures[:, formed][:, [0, 4]])
    final = prepare(film.drop_vars("preview_video"))["image"]
    assert final.dims == ("sample", "frame", "y", "x", "band")
    np.testing.assert_allclose(final.values / 255, film["video"].values[:, [0, 4]], atol=0.5 / 255 + 1e-6)


def test_the_conditional_branch_comes_first(film):
    assert film["context"].values.tolist() == ["cond", "uncond"]
    turned = prepare(film.isel(context=[1, 0]))
    assert turned["context"].values.tolist() == ["cond", "uncond"]
    np.testing.assert_array_equal(turned["choice"], prepare(film)["choice"])


def test_it_opens_where_choices_differ_most(tiny):
    data = prepare(tiny)
    skipped = np.flatnonzero(data["is_full"].values[0, 0] == 0)
    assert data.attrs["opens"] in skipped
    step = int(skipped[-1])
    choice, tokens = data["choice"].values.copy(), np.arange(16)
    choice[:, :, skipped] = 0
    choice[:, 0, step] = tokens % 4
    spread = tiny.assign(choice=(tiny["choice"].dims, choice))
    assert prepare(spread).attrs["opens"] == step
    error = tiny["true_error"].values.copy()
    error[:, :, skipped] = 1
    error[:, 0, int(skipped[1])] = tokens[:, None]
    alike = tiny.assign(
        choice=(tiny["choice"].dims, np.where(choice >= 0, 0, -1)), true_error=(tiny["true_error"].dims, error)
    )
    assert prepare(alike).attrs["opens"] == skipped[1]


def test_two_side_by_side(tiny, accelerated):
    first, second = prepare_pair(tiny, accelerated)
    assert first["name"].values.tolist() == second["name"].values.tolist() == ["label 1, seed 4", "label 3, seed 6"]
    assert (first["number"].values.tolist(), second["number"].values.tolist()) == ([0, 2], [1, 0])
    np.testing.assert_array_equal(second["choice"], accelerated["choice"].values[[1, 0]])
    for name in ("chosen_error", "regret", "chosen_proxy_loss"):
        limits = (
            [one[name].attrs["low"] for one in (first, second)],
            [one[name].attrs["high"] for one in (first, second)],
        )
        assert all(low == high for low, high in limits)
    assert prepare_pair(tiny, accelerated, samples=[2])[1]["number"].values.tolist() == [0]


@each_row(
    ("samples", "change", "message"),
    [
        ([1], lambda one: one, r"no sample \(label 2, seed 5\): it has label 3, seed 6; label 1, seed 4"),
        (None, lambda one: one.assign_coords(seed=("sample", [7, 8])), r"no sample \(label 1, seed 4\)"),
        (None, lambda one: one.isel(step=slice(1, None)), "the steps must be the same"),
        (None, lambda one: one.isel(context=[0]), "the contexts must be the same"),
    ],
)
def test_recordings_that_do_not_go_side_by_side(tiny, accelerated, samples, change, message):
    with pytest.raises(ValueError, match=message):
        prepare_pair(tiny, change(accelerated), samples=samples)


def test_plain_predictors_have_the_longest_horizon(bundled):
    data = prepare(bundled, samples=[0])
    assert [(int(data["order"][p]), float(data["shift"][p])) for p in data.attrs["plain"]] == [(0, 0), (1, 0), (2, 0)]


def test_bad_recordings_and_unknown_samples(tiny):
    for samples in ([3], [-1], [0, 0], []):
        with pytest.raises(ValueError, match="different numbers from 0 to 2"):
            prepare(tiny, samples=samples)
    with pytest.raises(ValueError, match=r"\['choice', 'proxy_loss'\] are missing"):
        prepare(tiny.drop_vars(["choice", "proxy_loss"]))
    with pytest.raises(ValueError, match="do not fill a grid of 1 x 4 x 4"):
        prepare(tiny.isel(token=slice(1, None)))
    with pytest.raises(TypeError, match=r"needs an xarray\.Dataset"):
        prepare(tiny["choice"])
