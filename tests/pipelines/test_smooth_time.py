"""A low-pass of the clock in pipelines, each of which tells its model the time in its own way."""

import pytest
import torch

import tapstudy
from tests.pipelines.tiny import Built, sample

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


NAMES = ["flux2_klein", "wan22"]


@pytest.mark.parametrize("built", NAMES, indirect=True)
def test_smoothed_and_back(built: Built) -> None:
    pipe, call = built
    plain = sample(pipe, call)
    with tapstudy.smooth_time(pipe, 40):
        smooth = sample(pipe, call)
    assert not torch.equal(smooth, plain)
    assert torch.equal(sample(pipe, call), plain)
