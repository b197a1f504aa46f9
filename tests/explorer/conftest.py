"""Recordings and pages to look at."""

import pytest

import tapstudy
from tapstudy.explorer.page import write_page
from tapstudy.explorer.prepare import prepare
from tapstudy.models.embedded import data_folder
from tests.conftest import make_tiny_pipe

FIELDS = ("proxy_loss", "true_error", "choice", "probe", "latent", "image")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Three samples of the tiny pipeline: 10 steps, 16 tokens, with latents and probes."""
    call = {"class_labels": [1, 2, 3], "seed": [4, 5, 6], "num_inference_steps": 10, "guidance_scale": 2.0}
    path, config = tmp_path_factory.mktemp("tiny") / "run.zarr", tapstudy.TAPConfig(interval=4)
    return tapstudy.record(make_tiny_pipe(), [call], path, fields=FIELDS, config=config, progress=False)


@pytest.fixture(scope="session")
def bundled():
    """The recording of mnist-dit that comes with the package."""
    return tapstudy.open_recording(data_folder() / "recordings" / "scores.zarr")


@pytest.fixture(scope="session")
def prepared(bundled):
    return prepare(bundled)


@pytest.fixture(scope="session")
def page_path(prepared, tmp_path_factory):
    return write_page(prepared, tmp_path_factory.mktemp("page") / "page.html")
