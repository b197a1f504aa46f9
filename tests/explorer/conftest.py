"""Recordings and pages to look at."""

import pytest

import tapstudy
from tapstudy.explorer.page import write_page
from tapstudy.explorer.prepare import prepare
from tapstudy.models.embedded import data_folder
from tapstudy.policies.tap import TAPPolicy
from tests.conftest import make_tiny_pipe
from tests.pipelines.tiny import FACTORIES

FIELDS = ("proxy_loss", "true_error", "choice", "probe", "latent", "image")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Three samples of the tiny pipeline: 10 steps, 16 tokens, with latents and probes."""
    call = {"class_labels": [1, 2, 3], "seed": [4, 5, 6], "num_inference_steps": 10, "guidance_scale": 2.0}
    path, config = tmp_path_factory.mktemp("tiny") / "run.zarr", tapstudy.TAPConfig(interval=4)
    return tapstudy.record(make_tiny_pipe(), [call], path, fields=FIELDS, config=config, progress=False)


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    """A video of the tiny Wan pipeline with previews of some steps: 12 steps, 2 frames of 2 x 4 tokens, 5 pictures."""
    pipe, call = FACTORIES["wan"]()
    call = {**call, "seed": 1, "output_type": "np"}
    path, config = tmp_path_factory.mktemp("film") / "run.zarr", tapstudy.TAPConfig(interval=4, warmup_steps=2)
    fields = ("proxy_loss", "true_error", "choice", "image", "preview")
    return tapstudy.record(pipe, [call], path, fields=fields, config=config, preview_steps=(1, 6, 11), progress=False)


@pytest.fixture(scope="session")
def accelerated(tmp_path_factory):
    """Two of the three samples of `tiny`, in another order, along TAP's own trajectory."""
    call = {"class_labels": [3, 1], "seed": [6, 4], "num_inference_steps": 10, "guidance_scale": 2.0}
    path, policy = tmp_path_factory.mktemp("accelerated") / "run.zarr", TAPPolicy(tapstudy.TAPConfig(interval=4))
    return tapstudy.record(make_tiny_pipe(), [call], path, policy=policy, progress=False)


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
