"""The tiny pipelines themselves, so that what goes wrong under a policy is the policy's doing."""

from __future__ import annotations

import pytest
import torch

from tests.pipelines import text
from tests.pipelines.tiny import FACTORIES, Built, sample

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_samples(request: pytest.FixtureRequest, built: Built) -> None:
    """One seed and the same weights give one image, another prompt gives another, and images are decoded."""
    pipe, call = built
    again, _ = FACTORIES[request.node.callspec.params["built"]]()
    latent = sample(pipe, call)
    assert torch.equal(sample(again, call), latent)
    other = {"prompt": text.PROMPTS[1:]} if "prompt" in call else {"class_labels": [7]}
    assert not torch.equal(sample(pipe, call, **other), latent)
    image = sample(pipe, call, output_type="np", num_inference_steps=3)
    assert image.shape[-1] == 3
    assert 0 <= image.min() < image.max() <= 1
