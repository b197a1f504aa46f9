"""Different calls one after another under one handle: each gives what it gives alone."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

import tapstudy
from tapstudy.instrument.adapters import find_adapter
from tests.pipelines import text
from tests.pipelines.tiny import FACTORIES, Built, Call, picture, sample

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CONFIG = tapstudy.TAPConfig(interval=4, warmup_steps=2)
Outcome = tuple[torch.Tensor, dict[tuple[str, str], str]]


def outcome(handle: tapstudy.Handle, pipe: Any, call: Call) -> Outcome:
    """The image and the masks."""
    image = sample(pipe, call)
    return image, {(entry.transformer, entry.context): entry.mask for entry in handle.summary().contexts}


def alone(pipe: Any, call: Call) -> Outcome:
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        return outcome(handle, pipe, call)


def assert_each_as_alone(handle: tapstudy.Handle, sequence: list[tuple[Any, Call, Outcome]]) -> None:
    for pipe, call, (image, masks) in sequence:
        got_image, got_masks = outcome(handle, pipe, call)
        assert got_masks == masks
        assert torch.equal(got_image, image)


def stop_after_five(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    pipe._interrupt = step == 4
    return tensors


# of every way in which pipelines call their transformers
KINDS = [
    "dit", "stable_diffusion_3_heun", "stable_diffusion_3_skip_layer_guidance", "flux_true_cfg", "wan22", "lumina2",
    "z_image_truncated",
]  # fmt: skip
PAIRS = {"prompt": text.PROMPTS, "negative_prompt": text.NEGATIVES, "class_labels": [3, 7]}


@pytest.mark.parametrize("built", KINDS, indirect=True)
def test_calls_of_other_kinds(built: Built) -> None:
    pipe, call = built
    if find_adapter(pipe.transformer) is None:
        pytest.skip(f"no adapter for {type(pipe.transformer).__name__}")
    parameters = inspect.signature(type(pipe).__call__).parameters
    two = {key: value for key, value in PAIRS.items() if key in call}
    changes: list[Call] = [{"num_inference_steps": 9}, two]
    if "height" in call:
        changes.append({"height": 2 * call["height"]})
    if "guidance_scale" in parameters:
        changes.append({"guidance_scale": 1.0})  # no guidance, or a weaker one
    if "callback_on_step_end" in parameters:
        changes.append({"callback_on_step_end": stop_after_five})  # a run that ends early without an exception

    plain = (pipe, call, alone(pipe, call))
    sequence = [plain]
    for change in changes:
        other = (pipe, call | change, alone(pipe, call | change))
        sequence += [other, plain]
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        assert_each_as_alone(handle, sequence)


@pytest.mark.parametrize(
    ("name", "image_to_image", "attached_to"),
    [
        ("stable_diffusion_3", diffusers.StableDiffusion3Img2ImgPipeline, "text to image"),
        ("flux_true_cfg", diffusers.FluxImg2ImgPipeline, "image to image"),
    ],
)
def test_pipelines_that_share_a_transformer(name: str, image_to_image: Any, attached_to: str) -> None:
    first, call = FACTORIES[name]()
    if find_adapter(first.transformer) is None:
        pytest.skip(f"no adapter for {type(first.transformer).__name__}")
    second = image_to_image.from_pipe(first)
    second.set_progress_bar_config(disable=True)
    known = inspect.signature(image_to_image.__call__).parameters
    from_image = {key: value for key, value in call.items() if key in known} | {"image": picture(), "strength": 0.75}

    text = (first, call, alone(first, call))
    image = (second, from_image, alone(second, from_image))
    with tapstudy.apply_tap(first if attached_to == "text to image" else second, CONFIG) as handle:
        assert_each_as_alone(handle, [text, image, image, text, text, image])
