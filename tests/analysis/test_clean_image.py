"""The expected clean image, from the states, against the model's own guided velocity."""

import numpy as np
import pytest

import tapstudy
from tapstudy.analysis.clean_image import clean_images
from tests.conftest import make_tiny_pipe

GUIDANCE = 1.7


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    call = {"class_labels": [1, 2], "seed": [0, 1], "num_inference_steps": 6, "guidance_scale": GUIDANCE}
    fields = ("latent", "latent_residual", "image")
    path = tmp_path_factory.mktemp("run") / "run.zarr"
    return tapstudy.record(make_tiny_pipe(), [call], path, fields=fields, progress=False)


def test_it_is_the_latent_minus_the_noise(run):
    latent = run["latent"].sel(context="cond")
    velocity = run["latent_residual"] + run["latent"]
    labelled, free = velocity.sel(context="cond"), velocity.sel(context="uncond")
    expected = latent - run["sigma"] * (free + GUIDANCE * (labelled - free))
    expected = (expected.transpose("sample", "step", "token", "latent_channel") / 2 + 0.5).clip(0, 1).values[:, :-1]
    found = clean_images(run)
    assert found.dims == ("sample", "step", "y", "x", "band")
    assert found.chunks is not None  # nothing is computed before it is asked for
    assert found["step"].values.tolist() == [0, 1, 2, 3, 4]
    for token in range(16):
        row, column = divmod(token, 4)
        patch = found.values[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2, 0]
        np.testing.assert_allclose(patch.reshape(2, 5, 4), expected[:, :, token], atol=2e-5)


def test_the_same_without_contexts(run):
    one = run.isel(context=0, drop=True).load()
    np.testing.assert_array_equal(clean_images(one), clean_images(run))


def test_bad_input(run):
    with pytest.raises(ValueError, match=r"\['latent'\] are missing"):
        clean_images(run.drop_vars("latent"))
    with pytest.raises(ValueError, match="not the patches of a 8 x 8 x 1 image"):
        clean_images(run.isel(latent_channel=[0]))
    with pytest.raises(TypeError, match=r"needs an xarray\.Dataset"):
        clean_images(run["latent"])
