"""Commands on a text-to-image model, a tiny one with random weights."""

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from tapstudy.cli import app
from tests.models.emoji import tiny_pipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe().save_pretrained(folder)
    return str(folder)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_samples_one_image_a_prompt(model, tmp_path):
    common = ("sample", "--model", model, "--steps", 6, "--interval", 3)
    done = run(*common, "--out", tmp_path / "two.png", "apple on a teal background", "zebra on a red background")
    assert done.exit_code == 0, done.output
    assert pixels(tmp_path / "two.png").shape == (32, 64, 3)
    assert "has never seen: zebra" in done.stderr
    assert "cond" in done.stdout
    assert "2 images in" in done.stdout
    led = run(*common, "--out", tmp_path / "led.png", "--negative", "plum", "apple on a teal background")
    assert led.exit_code == 0, led.output
    assert not np.array_equal(pixels(tmp_path / "led.png"), pixels(tmp_path / "two.png")[:, :32])


def test_samples_examples_when_nothing_is_asked_for(model, tmp_path):
    few = ("--steps", 4, "--interval", 3, "--warmup-steps", 1)
    done = run("sample", "--model", model, *few, "--out", tmp_path / "four.png")
    assert done.exit_code == 0, done.output
    assert "4 images in" in done.stdout


def test_what_labels_cannot_do_is_said(tmp_path):
    done = run("sample", "--negative", "plum", "3", "--out", tmp_path / "a.png")
    assert done.exit_code == 2
    assert "--negative is of models of text" in done.stderr
    assert not (tmp_path / "a.png").exists()
