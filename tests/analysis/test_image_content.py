import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import tapstudy
from tapstudy.analysis.image_content import image_content, otsu_threshold
from tests.table import each_row


def picture(image, rows, cols, *, frames=None):
    """A dataset of one image (y, x, band) or video (time, y, x, band)."""
    image = np.asarray(image, dtype=np.float32)
    count = rows * cols * (frames or 1)
    number = np.arange(count)
    coords = {"row": ("token", number // cols % rows), "col": ("token", number % cols)}
    if frames:
        coords["frame"] = ("token", number // (rows * cols))
    name, dims = ("video", ("time", "y", "x", "band")) if image.ndim == 4 else ("image", ("y", "x", "band"))
    return xr.Dataset({name: (("sample", *dims), image[None])}, coords=coords)


def on_grid(values, rows, cols):
    return values.values.reshape(rows, cols)


def test_square_by_hand():
    """A bright square of 8 x 8 pixels: its rim is edge, its middle interior, the rest background."""
    image = np.zeros((16, 16, 1))
    image[4:12, 4:12] = 1
    found = image_content(picture(image, 8, 8)).isel(sample=0).load()
    bright = np.zeros((8, 8))
    bright[2:6, 2:6] = 1
    np.testing.assert_allclose(on_grid(found.brightness, 8, 8), bright)
    np.testing.assert_array_equal(on_grid(found.foreground, 8, 8), bright == 1)
    classes = on_grid(found.token_class, 8, 8)
    assert (classes[3:5, 3:5] == 2).all()
    assert (classes[0] == 0).all()
    assert (classes[2, 2:6] == 1).all()
    assert found.token_class.attrs["flag_meanings"].split() == ["background", "edge", "interior"]
    assert found.token_class.attrs["flag_values"].tolist() == [0, 1, 2]
    assert found.texture.values.reshape(8, 8)[3:5, 3:5] == pytest.approx(0, abs=1e-6)


def test_ramp_has_its_slope():
    ramp = np.tile(np.arange(20.0)[None, :, None] * 0.03, (20, 1, 3))
    found = image_content(picture(ramp, 5, 5)).isel(sample=0)
    inner = on_grid(found.gradient, 5, 5)[1:-1, 1:-1]
    np.testing.assert_allclose(inner, 0.03, rtol=1e-5)
    # the window is 4 pixels wide: the standard deviation of four numbers 0.03 apart
    np.testing.assert_allclose(on_grid(found.texture, 5, 5)[:, 1:-1], np.std(0.03 * np.arange(4)), rtol=1e-3)


def test_bands_are_averaged_and_tokens_are_placed():
    rng = np.random.default_rng(0)
    image = rng.random((6, 9, 3))
    dataset = picture(image, 2, 3)
    shuffled = dataset.isel(token=[4, 0, 5, 2, 1, 3])
    expected = image.mean(-1).reshape(2, 3, 3, 3).mean(axis=(1, 3)).ravel()
    np.testing.assert_allclose(image_content(dataset).brightness[0], expected, rtol=1e-6)
    np.testing.assert_allclose(image_content(shuffled).brightness[0], expected[[4, 0, 5, 2, 1, 3]], rtol=1e-6)


@each_row("times", [4, 5])
def test_video(times):
    """Two frames of tokens: even parts, or one frame and then the rest (causal codecs)."""
    rng = np.random.default_rng(0)
    video = rng.random((times, 4, 4, 3))
    found = image_content(picture(video, 2, 2, frames=2)).isel(sample=0)
    first = 2 if times == 4 else 1
    gray = video.mean(-1).reshape(times, 2, 2, 2, 2).mean(axis=(2, 4))
    expected = np.stack([gray[:first].mean(0), gray[first:].mean(0)]).ravel()
    np.testing.assert_allclose(found.brightness, expected, rtol=1e-6)
    assert found.frame.values.tolist() == [0] * 4 + [1] * 4


def test_one_gray_value_is_background():
    found = image_content(picture(np.full((8, 8, 1), 0.7), 4, 4))
    assert not found.token_class.any()
    assert not found.foreground.any()


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1, width=16), min_size=2, max_size=30))
def test_otsu_is_the_best_cut(values):
    values = np.array(values)
    cut = otsu_threshold(values)

    def between(at):
        low, high = values[values <= at], values[values > at]
        return len(low) * len(high) * (low.mean() - high.mean()) ** 2 if len(low) and len(high) else 0.0

    assert between(cut) >= max(between(at) for at in values) - 1e-12


def test_real_digits_are_lazy():
    scores = tapstudy.open_recording("data/recordings/scores.zarr")
    found = image_content(scores)
    assert found.token_class.chunks is not None
    assert found.token_class.dims == ("sample", "token")
    image = scores.image.values[..., 0]
    patches = image.reshape(8, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(8, 196)
    np.testing.assert_allclose(found.brightness, patches, rtol=1e-5, atol=1e-6)
    shares = (found.token_class == 0).mean("token")
    assert ((shares > 0.4) & (shares < 0.9)).all()


@each_row(
    ("dataset", "message"),
    [
        (picture(np.zeros((8, 8, 1)), 4, 4).drop_vars("image"), "neither"),
        (picture(np.zeros((8, 8, 1)), 4, 4).drop_vars("row"), r"\['row'\] are missing"),
        (picture(np.zeros((8, 8, 1)), 3, 4), "8 pixels along y do not divide into 3 tokens"),
        (picture(np.zeros((8, 8, 1)), 4, 4, frames=2), "tokens of 2 frames, but a single image"),
        (picture(np.zeros((6, 8, 8, 1)), 4, 4, frames=4), "along time do not divide"),
    ],
)
def test_bad_input(dataset, message):
    with pytest.raises(ValueError, match=message):
        image_content(dataset)
