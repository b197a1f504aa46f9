"""The whole way of `cifar10-dit`, from JPEG files to a loaded model with a card, on a tiny recipe."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from diffusers import DiTTransformer2DModel
from safetensors.torch import load_file
from typer.testing import CliRunner

import tapstudy
from tapstudy.instrument.time_features import time_embedders
from tapstudy.models import quality
from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.data import load_images
from tapstudy.models.embedded import INDEX, data_set_of, load_classifier, model_folder, weight_files
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.models.quality import Judge
from tapstudy_training import card, make
from tapstudy_training.checkpoint import start
from tapstudy_training.command import model_command
from tapstudy_training.make import Machine, make_classifier, measure_model, train_model
from tapstudy_training.recipes import CLASSIFIERS, MODELS
from tapstudy_training.tasks import task_of
from tests.models.test_data import jpeg_set
from tests.table import each_row

CIFAR = MODELS["cifar10-dit"]
TINY = replace(
    CIFAR,
    transformer={**CIFAR.transformer, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2},
    recipe=replace(CIFAR.recipe, total_steps=6, batch_size=4, checkpoint_every=4, log_every=2, rate_warmup_steps=2),
    count=100,
)
CPU = Machine("cpu", compile=False, peak=1e12)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """100 images of ten flat colours, as JPEG files."""
    folder = tmp_path_factory.mktemp("data")
    levels = (np.arange(100) % 10 * 25).astype(np.uint8)
    images = np.broadcast_to(levels[:, None, None, None], (100, 32, 32, 3)) // np.array([1, 2, 3], np.uint8)
    for split in ("train", "test"):
        jpeg_set(folder, np.ascontiguousarray(images), split=split)
    return folder


@pytest.fixture(scope="module")
def judge(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    recipe = replace(CLASSIFIERS["cifar10"], width=4, epochs=1, batch_size=32)
    train, test = (load_images("cifar10", split, data) for split in ("train", "test"))
    make_classifier("cifar10", recipe, train_images=train, test=test, out=folder)
    return folder


@pytest.fixture(scope="module")
def made(data, judge, tmp_path_factory):
    """Trained in one go, measured, written, in files of at most 32 KiB; its folder and the run's."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(card, "SHARD_BYTES", 2**15)
        patch.setattr(quality, "sample_images", one_step(quality.sample_images))
        train, test = (load_images("cifar10", split, data) for split in ("train", "test"))
        trained, report = train_model(TINY, train, CPU, work=folder / "work", export_to=folder / "exported")
        found = Judge(load_classifier(CIFAR.name, folder=judge), test)
        qualities = measure_model(
            TINY, trained, images=train, judge=found, machine=CPU, out=folder / "out", work=folder / "work"
        )
    return folder, trained, report, qualities


def one_step(sample):
    return lambda *arguments, **named: sample(*arguments, **{**named, "steps": 1})


def test_shards_load_through_diffusers_and_the_package(made):
    """The same weights by every way, each the averaged ones rounded to bf16; no file beyond the limit."""
    folder, trained, _, _ = made
    files = weight_files(folder / "exported")
    assert len(files) > 1
    assert all(file.stat().st_size < 2**15 + 8192 for file in files)
    assert {tensor.dtype for file in files for tensor in load_file(file).values()} == {torch.bfloat16}
    ways = (
        tapstudy.load(folder / "exported").transformer,
        tapstudy.load(folder / "out").transformer,
        DiTTransformer2DModel.from_pretrained(folder / "exported" / "transformer", use_safetensors=True),
        LabelPipeline.from_pretrained(folder / "exported", use_safetensors=True).transformer,
        tapstudy.load(folder / "exported", dtype=torch.bfloat16).transformer,
    )
    for way in ways:
        for name, weight in trained.modules["transformer"].state_dict().items():
            assert torch.equal(way.state_dict()[name].float(), weight.bfloat16().float()), name


def test_export_is_continued_with_fresh_moments(made, data, tmp_path):
    folder, trained, _, _ = made
    images = load_images("cifar10", "train", data)
    further, _ = train_model(TINY, images, CPU, work=tmp_path, initial=folder / "exported", minutes=0)
    assert further.step == 1
    assert not further.finished
    change = [
        (a - b.bfloat16().float()).abs().max()
        for a, b in zip(further.modules.parameters(), trained.modules.parameters(), strict=True)
    ]
    # the first step of AdamW moves a weight w by at most the rate times 1 + decay |w|, and no |w| is near 10
    assert max(change) <= 1.01 * TINY.recipe.rate(0) * (1 + 10 * TINY.recipe.weight_decay)


def test_report_and_card(made):
    folder, _, report, qualities = made
    assert report.startswith("step 6 of 6: 24 images (0.2 epochs), mean loss of the last 6 steps")
    assert "GFLOPs an image" in report
    assert "% of 1 TFLOP/s" in report
    assert [name for name, _ in qualities] == ["this model", "training images"]
    assert [found.guidance_scale for _, found in qualities] == [2, 0]
    text = (folder / "out" / "README.md").read_text()
    for part in (
        "# cifar10-dit",
        "32 x 32 x 3, patch 2 (256 tokens), width 32",
        "the 50,000 CIFAR-10 training images (from JPEG files, slightly lossy), scaled to [-1, 1], half of them",
        "Stored in bfloat16",
        "`cifar10-classifier`",
        "its 256 features",
        "A. Krizhevsky",
        "batch 4",
    ):
        assert part in text, part
    assert "mnist" not in text.lower()
    for name in ("loss.csv", "loss.png", "samples.png"):
        assert (folder / "out" / name).stat().st_size > 0
    assert (folder / "work" / "loss.png").stat().st_size > 0


def test_judge_is_picked_by_the_images(judge, made):
    folder = made[0]
    image = torch.zeros(1, 3, 32, 32)
    assert data_set_of(folder / "out") == data_set_of(tapstudy.load(folder / "out")) == "cifar10"
    assert data_set_of("mnist-dit") == "mnist"
    assert classify(load_classifier(folder / "out", folder=judge), image)[1].shape == (1, 16)
    assert load_classifier().config["bands"] == load_classifier(tapstudy.load("mnist-dit")).config["bands"] == 1
    assert "eight 3x3 convolutions" in (judge / "README.md").read_text()


def test_no_judge_for_other_images(tiny_pipe):
    with pytest.raises(ValueError, match=r"no data set has images of 8 x 8 x 1: .* for mnist, cifar10"):
        load_classifier(tiny_pipe)


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("TAPSTUDY_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"the weights of cifar10-dit are not in .*`tapstudy train cifar10-dit`"
    ):
        tapstudy.load("cifar10-dit")
    with pytest.raises(
        FileNotFoundError, match=r"weights of mnist-dit-rough .*`tapstudy train mnist-dit --smooth-sigma 0 "
    ):
        tapstudy.load("mnist-dit-rough")
    with pytest.raises(FileNotFoundError, match=r"no classifier at .*`tapstudy train cifar10-classifier`"):
        load_classifier("cifar10-dit")


def test_missing_shard_and_broken_index(made, tmp_path):
    folder = shutil.copytree(made[0] / "exported", tmp_path / "model")
    gone = weight_files(folder)[-1]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=rf"not a complete model: transformer/{gone.name} is missing"):
        tapstudy.load(folder)
    (folder / "transformer" / INDEX).write_text(json.dumps({"weight_map": None}))
    with pytest.raises(ValueError, match=r"the index .* cannot be used"):
        tapstudy.load(folder)


def test_command_stops_and_goes_on(data, judge, tmp_path, monkeypatch):
    """Calls without time make a step each, the last of them the export's weights; one with time measures."""
    monkeypatch.setattr(quality, "sample_images", one_step(quality.sample_images))
    app = typer.Typer()
    app.command()(model_command(TINY))

    def run(*options):
        arguments = {"--data": data, "--classifier": judge, "--count": 200, "--steps": 2, "--sample-every": 100}
        given = [str(word) for pair in arguments.items() for word in pair]
        return CliRunner().invoke(app, [*given, "--no-compile", "--device", "cpu", *map(str, options)])

    cut = ["--work", tmp_path / "cut", "--out", tmp_path / "out"]
    result = run(*cut, "--minutes", 0)
    assert result.exit_code == 0, result.output
    assert "step 1 of 2" in result.output
    assert "time is up: the same command goes on from here" in result.output
    assert not (tmp_path / "out").exists()
    result = run(*cut, "--minutes", 0, "--export", tmp_path / "exported")
    assert "step 2 of 2" in result.output
    assert "trained; time is up: the same command measures it" in result.output
    result = run(*cut)
    assert result.exit_code == 0, result.output
    assert "training images: label accuracy" in result.output
    exported, written = (weight_files(tmp_path / name) for name in ("exported", "out"))
    assert [file.read_bytes() for file in exported] == [file.read_bytes() for file in written]


def test_initial_weights_of_the_recipe(data, judge, tmp_path, monkeypatch):
    """A smooth run goes on from the recipe's model, unless another is given; one that is not starts at random."""
    seen = []

    def train_model(spec, images, machine, *, initial, **others):
        seen.append(initial)
        return SimpleNamespace(finished=False), ""

    monkeypatch.setattr(make, "train_model", train_model)
    app = typer.Typer()
    app.command()(model_command(replace(TINY, initial="mnist-dit-rough")))
    common = ["--data", str(data), "--classifier", str(judge), "--count", "200", "--device", "cpu", "--no-compile"]
    for options in (["--smooth-sigma", "30"], ["--smooth-sigma", "30", "--initial", str(tmp_path)], []):
        result = CliRunner().invoke(app, [*common, *options])
        assert result.exit_code == 0, result.output
    assert seen == [model_folder("mnist-dit-rough"), tmp_path, None]


@each_row(
    ("options", "message"),
    [
        (["--count", "256"], "--count 256 is too few: the Frechet distance needs more .* features, 256"),
        (["--count", "257", "--initial-count", "256"], "--initial-count 256 is too few"),
    ],
)
def test_too_few_samples_for_the_judge_are_refused_before_training(data, tmp_path, options, message):
    Classifier(bands=3, width=64).save(tmp_path / "judge")
    app = typer.Typer()
    app.command()(model_command(TINY))
    given = ["--data", str(data), "--classifier", str(tmp_path / "judge"), "--work", str(tmp_path / "work"), *options]
    result = CliRunner().invoke(app, [*given, "--device", "cpu"])
    assert result.exit_code == 2
    assert re.search(message, result.output)
    assert not (tmp_path / "work").exists()


@each_row(
    ("options", "message"),
    [
        (["--device", "cuda"], "--device cuda: no GPU is visible to torch"),
        (["--classifier", "/nonexistent"], "no classifier at /nonexistent: train it with"),
        (["--data", "/nonexistent"], "no image set at /nonexistent/cifar10_train.npz"),
    ],
)
def test_bad_options(data, judge, tmp_path, options, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    app = typer.Typer()
    app.command()(model_command(TINY))
    given = ["--count", "200", "--data", str(data), "--classifier", str(judge), "--work", str(tmp_path), *options]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 2
    assert message in result.output


def test_a_smooth_model_keeps_its_low_pass(data, judge, tmp_path, monkeypatch):
    """The factors are folded into every block's weights, told in the index, and undone before training goes on."""
    monkeypatch.setattr(quality, "sample_images", one_step(quality.sample_images))
    smooth = replace(TINY, recipe=replace(TINY.recipe, total_steps=1, learning_rate=0.0, smooth_sigma=30.0))
    train, test = (load_images("cifar10", split, data) for split in ("train", "test"))
    trained, _ = train_model(smooth, train, CPU, work=tmp_path / "work")
    found = Judge(load_classifier(CIFAR.name, folder=judge), test)
    out = tmp_path / "out"
    measure_model(smooth, trained, images=train, judge=found, machine=CPU, out=out, work=tmp_path / "work")
    assert "sigma = 30" in (out / "README.md").read_text()
    pipe = tapstudy.load(out)
    assert pipe.config.smooth_sigma == 30
    again = start(task_of(smooth, train), smooth.recipe, device="cpu", initial=out).modules["transformer"]
    embedders = time_embedders(pipe.transformer)
    unfolded = [value for name, value in again.named_parameters() if name.endswith("timestep_embedder.linear_1.weight")]
    assert len(embedders) == len(unfolded) == 2  # one in every block
    for folded, weight in zip(embedders, unfolded, strict=True):
        factors = folded.low_pass(30.0).to(weight.dtype)
        kept = factors > 1e-2
        assert 0 < kept.sum() < len(kept)
        torch.testing.assert_close(folded.linear.weight[:, kept], (weight * factors)[:, kept], rtol=1e-5, atol=0)
        assert (weight[:, ~kept] == 0).all()
