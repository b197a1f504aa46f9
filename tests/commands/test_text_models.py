"""Commands on a text-to-image model, a tiny one with random weights."""

import numpy as np
import pytest
import xarray as xr
from PIL import Image

import tapstudy
from tapstudy.bench.compare import compare_images
from tapstudy.bench.image_set import ImageSet
from tapstudy.cli import app
from tapstudy.plots.image_grid import plot_image_grid
from tests.command_line import invoke
from tests.training.emoji import tiny_pipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_pipe().save_pretrained(folder)
    return str(folder)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def run(*arguments):
    return invoke(app, [*map(str, arguments)])


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


def test_records_prompts_and_explores_them(model, tmp_path):
    out = tmp_path / "run.zarr"
    common = ("--model", model, "--steps", 6, "--interval", 2, "--warmup-steps", 2)
    asked = ("--prompt", "apple on a teal background", "--prompt", "plum", "--negative", "fig")
    done = run(
        "record", out, *common, *asked, "--seeds", "0,7", "--fields", "choice,proxy_loss,true_error,latent,image"
    )
    assert done.exit_code == 0, done.output
    found = tapstudy.open_recording(out)
    assert found["label"].values.tolist() == ["apple on a teal background", "plum"] * 2
    assert found["seed"].values.tolist() == [0, 0, 7, 7]
    assert found["context"].values.tolist() == ["cond", "uncond"]
    assert '"negative_prompt": "fig"' in found.attrs["configuration"]
    assert '"guidance_scale": 3.0' in found.attrs["configuration"]
    resumed = run("record", "--resume", out)
    assert resumed.exit_code == 0, resumed.output
    page = run("explore", out, "--out", tmp_path / "page.html")
    assert page.exit_code == 0, page.output
    assert "apple on a teal background" in (tmp_path / "page.html").read_text()


def test_labels_and_prompts_do_not_mix(model, tmp_path):
    for arguments in (("--labels", "3", "--prompt", "x"), ("--negative", "x"), ("--prompt", "x")):
        done = run("record", tmp_path / "run.zarr", *arguments)
        assert done.exit_code == 2
        assert not (tmp_path / "run.zarr").exists()


PROMPTS = "apple on a teal background;red apple noto on a red background"


def test_ablates_prompts(model, tmp_path):
    few = ("--steps", 6, "--axis", "method=tap,fixed1", "--axis", "interval=2", "--axis", "warmup_steps=2")
    done = run("ablate", "--model", model, "--labels", PROMPTS, *few, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    with xr.open_dataset(tmp_path / "sweep.nc") as found:
        assert found["label"].values.tolist() == PROMPTS.split(";")
        assert np.isfinite(found["psnr"]).all()
        assert found["correct"].isnull().values[0].tolist() == [True, False], "a plain apple is no emoji"


def test_follows_errors_of_prompts(model, tmp_path):
    few = ("--steps", 6, "--interval", 2, "--labels", PROMPTS)
    done = run("bench", "errors", "--model", model, *few, "--out", tmp_path / "errors.nc")
    assert done.exit_code == 0, done.output
    with xr.open_dataset(tmp_path / "errors.nc") as found:
        assert found.sizes["sample"] == 2


def test_rounds_weights_on_prompts(model, tmp_path):
    few = ("--steps", 6, "--bits", 4, "--intervals", 2, "--labels", PROMPTS)
    where = ("--work", tmp_path / "work", "--out", tmp_path / "out.nc")
    done = run("bench", "quantised", "--model", model, *few, *where)
    assert done.exit_code == 0, done.output
    with xr.open_dataset(tmp_path / "out.nc") as found:
        assert found["both"].sizes["sample"] == 2
        assert np.isfinite(found["both"]).all()


def test_compares_methods_on_prompts(model, tmp_path):
    methods = "fewer,region,teacache,peer-first-block"
    few = ("--seeds", 3, "--held-out", 4, "--steps", 12, "--passes", 5, "--tuning", 1, "--repeats", 1,
           "--schedules", "even")  # fmt: skip
    where = ("--work", tmp_path / "work", "--out", tmp_path / "out.nc", "--page", tmp_path / "page.md")
    done = run("bench", "frontier", "--model", model, "--labels", PROMPTS, "--methods", methods, *few, *where)
    assert done.exit_code == 0, done.output
    with xr.open_dataset(tmp_path / "out.nc") as found:
        kept = found.sel(cell=(found["error"] == "").values)
        assert np.isfinite(kept["psnr"].values[1:]).all()
        assert {"region N=4", "fewer N=4"} <= set(kept["cell"].values)
    assert "red apple noto on a red background" in (tmp_path / "page.md").read_text()


def test_samples_methods_side_by_side(model, tmp_path):
    images = ImageSet.of(model, seeds=(0,), labels=PROMPTS.split(";"), steps=12)
    found = compare_images(images, folder=tmp_path, intervals=(3,))
    assert found["image"].dims == ("run", "sample", "band", "y", "x")
    figure = plot_image_grid(found)
    assert figure.axes[0].images[0].get_array().shape == (32, 32, 3)
    assert "apple on" in figure.axes[0].get_title()
    whole = found.assign(image=(255 * found["image"]).round().astype("uint8"))  # as stock pipelines give them
    maps, same = (one.axes[-2].images[0].get_array() for one in (figure, plot_image_grid(whole)))
    np.testing.assert_allclose(maps, same, atol=1 / 255)
