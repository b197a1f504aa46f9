"""What images are of, read from options and files."""

import json
import zlib

import pytest
import torch
from PIL import Image

from tapstudy.bench.conditions import (
    Call,
    arguments_of,
    as_dict,
    check_conditions,
    noise_seed,
    read_prompts,
    with_negative,
)
from tapstudy.bench.image_set import ImageSet
from tapstudy.models.sources import name_of
from tests.pipelines import tiny
from tests.table import each_row


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_a_prompt_a_line(tmp_path):
    path = written(tmp_path, "prompts.txt", "# mine\na fox\n\n  two boats, at dawn  \n")
    assert read_prompts(path) == ["a fox", "two boats, at dawn"]


def test_columns_are_arguments(tmp_path):
    Image.new("RGB", (4, 3), "red").save(tmp_path / "red.png")
    path = written(
        tmp_path,
        "prompts.csv",
        'prompt,height,guidance_scale,image,clean_caption\n"a fox, asleep",32,2.5,red.png,false\n1984,,,,\n',
    )
    one, two = read_prompts(path)
    assert as_dict(one) == {
        "clean_caption": False, "guidance_scale": 2.5, "height": 32, "image": str(tmp_path / "red.png"),
        "prompt": "a fox, asleep",
    }  # fmt: skip
    assert as_dict(two) == {"prompt": "1984"}
    assert str(one).startswith("a fox, asleep {")
    call = arguments_of([one])
    assert call["image"].size == (4, 3)
    assert call["height"] == 32
    (tmp_path / "red.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"red\.png, which the argument image names"):
        arguments_of([one])


@each_row(
    ("name", "text", "message"),
    [
        ("a.txt", "# nothing\n", "holds no prompts"),
        ("a.txt", "a fox\na fox\n", "'a fox' stands there twice"),
        ("a.csv", "prompt,height\na fox,32,7\n", "line 2: has not as many fields as its header, which has 2"),
        ("a.csv", "prompt,height\na fox\n", "line 2: has not as many fields"),
        ("a.csv", "a fox in the snow\n", "the first line must name arguments"),
        ("a.csv", "", "the first line must name arguments"),
        ("a.csv", "prompt,sizes\na,[1\n", r"line 2: '\[1' begins like a list or a mapping of JSON and is none"),
    ],
)
def test_files_that_hold_something_else(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read_prompts(written(tmp_path, name, text))


def test_a_negative_prompt_for_those_without(tmp_path):
    own = Call.of({"prompt": "b", "negative_prompt": "dark"})
    found = with_negative(["a", own], "blurry", "--prompt")
    assert [as_dict(one)["negative_prompt"] for one in found] == ["blurry", "dark"]


def test_conditions_are_plain_values():
    call = Call.of({"prompt": "a", "sizes": [1, [2, 3]]})
    assert call == Call.of({"sizes": (1, (2, 3)), "prompt": "a"})
    assert len({call, "a", 3}) == 3
    images = ImageSet.of("x", seeds=(0,), labels=(call, "a"), guidance=None)
    assert json.loads(json.dumps(images.key))["pairs"] == [[0, {"prompt": "a", "sizes": [1, [2, 3]]}], [0, "a"]]
    with pytest.raises(TypeError):
        Call.of({"image": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"2 images with arguments of their own .* give one row at a time"):
        arguments_of(["a", call])
    assert arguments_of([3, 4]) == {"class_labels": [3, 4]}
    assert noise_seed(2, 5) == 2005


def test_noise_of_prompts():
    """No two prompts or seeds of a large study share their noise; those of embedded models stay as published."""
    prompts = [f"prompt number {i}" for i in range(2000)]
    seeds = {noise_seed(seed, prompt) for seed in (0, 1) for prompt in prompts}
    assert len(seeds) == 4000
    assert max(seeds) < 2**32  # torch's generator of the CPU reads no more
    assert noise_seed(0, "a") == noise_seed(0, "a") == noise_seed(0, Call.of({"prompt": "a", "height": 3}))
    assert noise_seed(4, "a rocket", few=True) == 4000 + zlib.crc32(b"a rocket") % 1000
    pipe, _ = tiny.stable_diffusion_3()
    ours, other = (
        ImageSet.of("emoji-flux", seeds=(4,), labels=["a rocket"]),
        ImageSet.of(name_of(pipe), seeds=(4,), labels=["a rocket"]),
    )
    assert ours.noise_seeds == [noise_seed(4, "a rocket", few=True)]
    assert other.noise_seeds == [noise_seed(4, "a rocket")]


def test_another_picture_under_the_same_path_is_another_image(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (4, 3), "red").save(path)
    images = ImageSet.of("x", seeds=(0,), labels=(Call.of({"prompt": "a", "image": str(path)}),))
    before = images.key
    assert images.key == before
    Image.new("RGB", (4, 3), "blue").save(path)
    assert images.key != before
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"mine: no file at .*, which the argument image names"):
        check_conditions(images.labels, "mine")
    assert noise_seed(0, Call.of({"prompt": "a", "image": "/b.png"})) == noise_seed(0, "a")


def test_lists_and_mappings(tmp_path):
    """Cells hold JSON, but for those of prompts; what is read can be hashed and comes out as it was."""
    template = {"template": "describe: {}", "crop_start": 3, "nested": [1, {"a": None}]}
    cell = json.dumps(template).replace('"', '""')
    path = written(
        tmp_path, "a.csv", f'prompt,prompt_template,negative_prompt,ids\n[1],"{cell}",1984,"[[1, 2], [3, 4]]"\n'
    )
    (one,) = read_prompts(path)
    assert as_dict(one) == {
        "prompt": "[1]", "negative_prompt": "1984", "prompt_template": template, "ids": [[1, 2], [3, 4]]
    }  # fmt: skip
    assert hash(one) == hash(Call.of(as_dict(one)))
    assert Call.of({"a": {"b": 1}}) != Call.of({"a": {"b": 2}})
    assert arguments_of([one])["prompt_template"] == template
    assert json.loads(json.dumps(ImageSet.of("x", seeds=(0,), labels=(one,)).key))["pairs"][0][1] == as_dict(one)
