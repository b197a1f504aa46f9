"""Images, arrays and tensors that calls are given: kept by hash, restored, and told apart at a resume."""

import json

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import tapstudy
from tapstudy.recording.calls import pipeline_arguments, samples_of
from tapstudy.recording.inputs import MODES, describe_inputs, restore_inputs
from tapstudy.recording.rebuild import read_configuration, recorder_arguments
from tapstudy.recording.store import SampleWriter
from tests.pipelines import text
from tests.pipelines.tiny import FACTORIES, STEPS, settle, wan_transformer
from tests.recording.runs import CONFIG
from tests.table import each_row


def photo(seed=0, size=(24, 16), mode="RGB"):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def stable_diffusion_3(kind):
    pipe, call = FACTORIES["stable_diffusion_3"]()
    return ready(getattr(diffusers, f"StableDiffusion3{kind}Pipeline").from_pipe(pipe)), call


def flux(kind):
    pipe, call = FACTORIES["flux"]()
    return ready(getattr(diffusers, f"Flux{kind}Pipeline").from_pipe(pipe)), call


def ready(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def several(call, prompts, **more):
    negative = {"negative_prompt": text.NEGATIVES[: len(prompts)]} if "negative_prompt" in call else {}
    return {**call, **negative, "prompt": prompts, "seed": [3, 4][: len(prompts)], "output_type": "np", **more}


def img2img():
    pipe, call = stable_diffusion_3("Img2Img")
    return pipe, several(call, text.PROMPTS, image=[photo(1), photo(2)], strength=0.5), STEPS // 2


def img2img_of_embeddings():
    """Embeddings instead of prompts, and an array instead of images."""
    pipe, call = flux("Img2Img")
    with torch.no_grad():
        words, pooled, _ = pipe.encode_prompt(text.PROMPTS, None, max_sequence_length=text.LENGTH)
    image = np.stack([np.asarray(photo(i)) for i in (1, 2)]).astype("float32") / 255
    given = {"prompt_embeds": words, "pooled_prompt_embeds": pooled, "image": image, "strength": 0.75}
    call = several(call, text.PROMPTS, **given)
    return pipe, {name: value for name, value in call.items() if name != "prompt"}, 9


def inpaint():
    pipe, call = flux("Inpaint")
    mask = Image.fromarray(np.pad(np.full((8, 12), 255, dtype=np.uint8), ((0, 8), (12, 0))))
    return pipe, several(call, text.PROMPTS[:1], image=photo(), mask_image=mask, strength=0.75), 9


def video_to_video():
    pipe, call = FACTORIES["wan"]()
    parts = {name: part for name, part in pipe.components.items() if name not in ("transformer_2", "boundary_ratio")}
    pipe = ready(diffusers.WanVideoToVideoPipeline(**parts))
    call = {name: value for name, value in call.items() if name != "num_frames"}
    video = [photo(i, (64, 32)) for i in range(5)]
    return pipe, several(call, text.PROMPTS[:1], video=video, strength=0.75) | encoded(call), 9


def image_to_video():
    """The transformer also gets the latents of the picture, and a mask of four channels that tells its frames."""
    pipe, call = FACTORIES["wan"]()
    with torch.random.fork_rng(devices=[]):
        transformer = wan_transformer(in_channels=4 + 4 + 4)
        settle(transformer)
    parts = {**pipe.components, "transformer": transformer}
    pipe = ready(diffusers.WanImageToVideoPipeline(**parts, image_processor=None, image_encoder=None))
    return pipe, several(call, text.PROMPTS[:1], image=photo(0, (64, 32))) | encoded(call), STEPS


def encoded(call):
    """Embeddings instead of prompts, which these pipelines clean with a package that may be missing."""
    pipe, _ = FACTORIES["wan"]()
    with torch.no_grad():
        words, negative = pipe.encode_prompt(call["prompt"], call["negative_prompt"], max_sequence_length=text.LENGTH)
    return {"prompt": None, "prompt_embeds": words, "negative_prompt": None, "negative_prompt_embeds": negative}


@pytest.mark.parametrize("make", [img2img, img2img_of_embeddings, inpaint, video_to_video, image_to_video])
def test_pipelines_of_images(make, tmp_path):
    """What the pipeline makes is recorded, with the steps it makes; and what it was given comes back."""
    pipe, call, steps = make()
    run = tapstudy.record(
        pipe, [call], tmp_path / "run", config=CONFIG, fields=("image", "true_error"), keep_inputs=True, progress=False
    ).load()
    assert run.sizes["step"] == steps
    assert (np.diff(run["timestep"]) < 0).all()
    assert run["is_full"].isel(sample=0, context=0).values[:6].tolist() == [1, 1, 0, 0, 0, 1]
    output = pipe(**pipeline_arguments(call))
    name, images = ("image", output.images) if hasattr(output, "images") else ("video", output.frames)
    assert len(images) == run.sizes["sample"] == len(call["seed"])
    np.testing.assert_array_equal(run[name], images)
    if len(call["seed"]) > 1:
        assert not np.array_equal(run[name][0], run[name][1])

    asked = recorder_arguments(read_configuration(tmp_path / "run"), tmp_path / "run")
    again = pipe(**pipeline_arguments(asked["calls"][0]))
    np.testing.assert_array_equal(getattr(again, "images" if name == "image" else "frames"), images)


@pytest.fixture
def cut_short(tmp_path, monkeypatch):
    """A recording of two calls of which the second is missing: the call of it, and what makes it whole."""
    pipe, call = stable_diffusion_3("Img2Img")
    calls = [several(call, text.PROMPTS[:1], image=[photo(i)], strength=0.5) for i in (1, 2)]

    def record(calls=calls, **changes):
        arguments = {"config": CONFIG, "fields": ("choice",), "progress": False} | changes
        return tapstudy.record(pipe, calls, tmp_path / "run", **arguments)

    finish = SampleWriter.finish
    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "finish", lambda self: finish(self) if self.sample == 0 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record()
    return calls, record


def test_resumed_with_the_same_images(cut_short, tmp_path):
    calls, record = cut_short
    path = tmp_path / "run"
    with pytest.raises(
        tapstudy.RecordingError,
        match=r"call 1, image\[0\]: image 16 x 24 x 3 RGB of sha256 \w{12} there, image 16 x 24 x 3 RGB of sha256",
    ):
        record([calls[0], {**calls[1], "image": [photo(3)]}])
    with pytest.raises(tapstudy.RecordingError, match=r"\(call 0, image\[0\]: image .* there, array 16 x 24 x 3 uint8"):
        record([{**calls[0], "image": [np.asarray(photo(1))]}, calls[1]])
    with pytest.raises(tapstudy.RecordingError, match=r"no more than a hash of call 0, image\[0\]: resume it from"):
        recorder_arguments(read_configuration(path), path)
    assert record(keep_inputs=True).sizes["sample"] == 2  # kept from here on
    asked = recorder_arguments(read_configuration(path), path)
    assert [np.array_equal(one["image"][0], photo(i)) for i, one in enumerate(asked["calls"], 1)] == [True, True]
    assert record(**{name: asked[name] for name in ("calls", "config", "fields")}).sizes["sample"] == 2
    lost = next((path / "inputs").rglob("c/0/0/0"))
    lost.unlink()
    with pytest.raises(tapstudy.RecordingError, match=rf"{lost.relative_to(path)}.* is missing; restore the file"):
        tapstudy.open_recording(path)


LEAVES = st.one_of(
    st.builds(photo, st.integers(0, 3), mode=st.sampled_from(MODES)),
    st.sampled_from(["float32", "float16", "int64", "uint8", "bool", ">f4", "complex64"]).map(
        lambda dtype: np.arange(6).reshape(2, 3).astype(dtype)
    ),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn]).map(
        lambda dtype: torch.arange(6).view(2, 3).to(dtype)
    ),
    st.sampled_from([1, "text", None, 0.5, True]),
)


def same(one, other):
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.double(), other.double())
    if isinstance(one, Image.Image):
        return one.mode == other.mode and np.array_equal(one, other)
    return type(one) is type(other) and np.array_equal(one, other)


@given(st.recursive(LEAVES, lambda one: st.lists(one, max_size=3) | st.dictionaries(st.text(max_size=3), one)))
def test_whatever_is_given_comes_back(value):
    found = {}
    described = json.loads(json.dumps(describe_inputs(value, "call 0", found)))
    assert same(value, restore_inputs(described, found, "call 0"))


@each_row(
    ("value", "error", "message"),
    [
        (photo().convert("P"), ValueError, r"call 0, image: an image of mode 'P' .*convert\('RGB'\)"),
        (np.array(["text"]), TypeError, "call 0, image: an array of dtype <U4 holds no numbers"),
        (
            [torch.Generator()],
            TypeError,
            r"call 0, image\[0\]: .* images, arrays and tensors, got Generator",
        ),
    ],
)
def test_what_cannot_be_kept(value, error, message):
    with pytest.raises(error, match=message):
        describe_inputs({"image": value}, "call 0", {})


def test_contents_shapes_and_dtypes_have_hashes_of_their_own():
    values = [photo(1), photo(2), torch.zeros(6), torch.zeros(2, 3), torch.zeros(6, dtype=torch.int32), np.ones(6)]
    found = {}
    for value in values:
        describe_inputs(value, "", found)
    assert len(found) == len(values)


PIXELS = np.zeros((2, 8, 8, 3))


@each_row(
    ("arguments", "count"),
    [
        ({"image": photo()}, 1),
        ({"image": [photo(), photo()]}, 2),
        ({"image": PIXELS}, 2),
        ({"image": PIXELS[0]}, 1),
        ({"image": [PIXELS[0]] * 3}, 3),
        ({"image": torch.zeros(4, 3, 8, 8)}, 4),
        ({"image": [torch.zeros(2, 3, 8, 8), torch.zeros(3, 8, 8)]}, 3),
        ({"image": photo(mode="L"), "mask_image": [photo(), photo()]}, 1),
        ({"image": [photo(), photo()], "num_images_per_prompt": 2}, 4),
        ({"video": [photo()] * 5}, 1),
        ({"video": [[photo()] * 5] * 2}, 2),
        ({"video": PIXELS}, 1),
        ({"video": list(PIXELS)}, 1),
        ({"video": [PIXELS, PIXELS]}, 2),
        ({"video": torch.zeros(3, 5, 3, 8, 8)}, 3),
        ({"prompt_embeds": torch.zeros(2, 7, 16), "image": photo()}, 2),
        ({"prompt": ["a", "b"], "image": photo()}, 2),
        ({"prompt": "a", "image": [photo(), photo()]}, 1),  # two pictures for one prompt
        ({"class_labels": torch.tensor([1, 2])}, 2),
        ({}, 1),
    ],
)
def test_how_many_samples(arguments, count):
    assert len(samples_of(0, {**arguments, "seed": 0})) == count
