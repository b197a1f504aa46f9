"""The tiny pipelines themselves, so that what goes wrong under a policy is the policy's doing."""

from __future__ import annotations

import pytest
import torch

from tests.pipelines import text
from tests.pipelines.tiny import FACTORIES, Built, sample

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_same_seed_gives_the_same_image(built: Built) -> None:
    pipe, call = built
    assert torch.equal(sample(pipe, call), sample(pipe, call))


def test_factory_draws_the_same_weights(request: pytest.FixtureRequest, built: Built) -> None:
    pipe, call = built
    again, _ = FACTORIES[request.node.callspec.params["built"]]()
    assert torch.equal(sample(pipe, call), sample(again, call))


def test_prompt_reaches_the_image(built: Built) -> None:
    pipe, call = built
    other = {"prompt": text.PROMPTS[1:]} if "prompt" in call else {"class_labels": [7]}
    assert not torch.equal(sample(pipe, call), sample(pipe, call, **other))


def test_decodes(built: Built) -> None:
    pipe, call = built
    image = sample(pipe, call, output_type="np")
    assert image.shape[-1] == 3
    assert 0 <= image.min() < image.max() <= 1
