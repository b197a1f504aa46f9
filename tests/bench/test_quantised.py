"""Caching on rounded weights: lines by hand, corrections that find nothing to correct, the command."""

import numpy as np
import pytest
import torch
import xarray as xr

from tapstudy.analysis.quantised import additivity, step_rows, table_rows
from tapstudy.analysis.stats import ratio_interval
from tapstudy.analysis.study import load_table
from tapstudy.bench.engine import Setting, run
from tapstudy.bench.fit.correction import Correction, line
from tapstudy.bench.image_set import ImageSet, pipe_of
from tapstudy.bench.sweep.quantised import CORRECTIONS
from tapstudy.bench.sweep.rounded_steps import WHEN, _rounded, steps_of
from tapstudy.cli import app
from tapstudy.instrument.quantise import quantise
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy
from tests.command_line import invoke
from tests.conftest import make_tiny_pipe
from tests.training.emoji import tiny_pipe as tiny_text_pipe


def test_lines_by_hand():
    """Features 0, 2 against 1, 7; a channel that does not vary is moved only."""
    features = torch.tensor([[[0.0, 5.0], [2.0, 5.0]]])
    exact = torch.tensor([[[1.0, 6.0], [7.0, 8.0]]])
    assert line(features, exact).tolist() == [[3.0, 1.0], [1.0, 2.0]]
    assert line(features, exact, match_variance=True).tolist() == [[3.0, 1.0], [-2.0, 0.0]]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe().save_pretrained(folder)
    return folder


@pytest.fixture
def images(model_folder):
    return ImageSet.of(str(model_folder), seeds=(4,), labels=(1, 2), steps=6)


@pytest.mark.parametrize(
    ("kind", "text"), [("variance", False), ("affine", True), ("cumulative", False), ("cumulative", True)]
)
def test_nothing_to_correct(images, kind, text, tmp_path):
    """Also where guidance branches are two calls, and states are tokens."""
    if text:
        tiny_text_pipe().save_pretrained(tmp_path)
        labels = "apple on a teal background", "dark nurse on a red background"
        images = ImageSet.of(str(tmp_path), seeds=(4,), labels=labels, steps=6)
    pipe = pipe_of(images.model)
    found = Correction(images).fit(pipe, Setting.plain(6), kind)
    calls = 2 if text and kind != "cumulative" else 1
    assert sorted(found) == [(step, call) for step in range(6) for call in range(calls)]
    slope, shift = torch.stack(list(found.values())).unbind(dim=1)
    assert torch.allclose(slope, torch.ones_like(slope), atol=1e-6)
    assert torch.allclose(shift, torch.zeros_like(shift), atol=1e-6)
    if kind == "cumulative":  # of states: colours
        assert slope.shape[-1] == (3 if text else 1)


def test_lines_match_the_spread_or_are_least_squares(images):
    pipe = pipe_of(images.model)
    rounded = Setting.plain(6).within(lambda pipe: quantise(pipe, 3), "weights of 3 bits")
    spread, affine = (Correction(images).fit(pipe, rounded, kind) for kind in ("variance", "affine"))
    assert all((lines[0] > 0).all() for lines in spread.values())  # a ratio of deviations
    assert all((lines[0] <= spread[place][0] + 1e-9).all() for place, lines in affine.items())  # times a correlation
    assert any((lines[0] < spread[place][0] - 1e-3).any() for place, lines in affine.items())


@pytest.mark.parametrize("kind", CORRECTIONS)
def test_corrects_the_images_it_is_fitted_to_and_leaves_no_trace(images, kind):
    pipe = pipe_of(images.model)
    exact = run(pipe, images, Setting.plain(6))["image"]
    cache = Setting.of(TAPPolicy(TAPConfig(interval=2, warmup_steps=2)))
    rounded = cache.within(lambda pipe: quantise(pipe, 3), "weights of 3 bits")
    corrected = Correction(images).of(rounded, kind)
    assert corrected.text != rounded.text
    found = run(pipe, images, corrected)
    assert found["mask"].values.tolist() == run(pipe, images, rounded)["mask"].values.tolist()
    assert not found["image"].equals(run(pipe, images, rounded)["image"])
    if kind == "cumulative":  # least squares to these very images at the last step
        assert ((found["image"] - exact) ** 2).mean() < ((run(pipe, images, rounded)["image"] - exact) ** 2).mean()
    assert run(pipe, images, Setting.plain(6))["image"].equals(exact)
    assert "step" not in vars(pipe.scheduler)


def test_ratio_by_hand():
    assert ratio_interval(np.array([1.0, 3.0]), np.array([2.0, 6.0])) == pytest.approx((0.5, 0.5, 0.5))
    assert ratio_interval(np.array([1.0, 3.0]), np.array([1.0, 1.0])) == pytest.approx((2, 1, 3))
    with pytest.raises(ValueError, match="paired"):
        ratio_interval(np.ones(3), np.ones(2))


def test_additivity_by_hand():
    """Both is the sum of either, and half of it with a correction."""
    dims = ("method", "interval", "bits", "correction", "sample")
    both = xr.DataArray(np.array([[[[[4.0, 6.0], [2.0, 3.0]]]]]), dims=dims)
    found = xr.Dataset(
        {
            "caching": (("method", "interval", "sample"), [[[1.0, 2.0]]]),
            "rounding": (("bits", "sample"), [[3.0, 4.0]]),
            "both": both,
            "cosine": (("method", "interval", "bits", "sample"), [[[[0.0, 0.5]]]]),
        },
        {"method": ["tap"], "interval": [8], "bits": [4], "correction": ["none", "affine"]},
    )
    ratios = additivity(found)
    assert ratios["sum_ratio"].values.ravel().tolist() == pytest.approx([1, 1, 1])
    assert ratios["corrected_ratio"].values.ravel().tolist() == pytest.approx([0.5, 0.5, 0.5])
    assert ratios["first_ratio"].sel(bound="mean").item() == pytest.approx(7 / 3)
    (row,) = table_rows(found)
    assert row == ["tap", "8", "4", "1.5e+03", "3.5e+03", "5e+03", "1.00 [1.00, 1.00]", "+0.25", "0.50 [0.50, 0.50]"]


def test_command(model_folder, tmp_path):
    few = "--seeds 3 --held-out 4 --labels 1,2 --steps 6 --bits 8,3 --intervals 3 --markdown"
    where = ["--model", str(model_folder), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.nc")]
    command = ["bench", "quantised", *few.split(), *where]
    done = invoke(app, command)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("| order0 |") == 2
    found = load_table(tmp_path, "out")
    assert found["both"].dims == ("method", "interval", "bits", "correction", "sample")
    assert found["rounding"].sel(bits=8).mean() < found["rounding"].sel(bits=3).mean()
    assert (found["caching"] > 0).all()
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.nc")}
    assert invoke(app, command).exit_code == 0
    assert files == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").rglob("*.nc")}, "it resumes"


def test_steps_that_are_rounded():
    chosen = {when: steps_of(when, 8) for when in WHEN}
    assert chosen == {"all": (1, 2, 3, 4, 5, 6, 7), "early": (1, 2, 3), "late": (5, 6, 7), "spread": (2, 4, 6)}
    assert {len(steps_of(when, 9)) for when in WHEN[1:]} == {4}
    assert steps_of("spread", 9) == (2, 4, 6, 8)


def test_rounded_at_no_step_changes_nothing_and_at_all_it_is_quantise(images):
    """But for the first step, which is the model's own: from there on the images are those of rounded weights."""
    pipe = pipe_of(images.model)
    exact = run(pipe, images, Setting.plain(6))["image"]
    with pytest.warns(UserWarning, match="skips none of them"):
        assert run(pipe, images, _rounded(3, (), 6))["image"].equals(exact)
    found = run(pipe, images, _rounded(3, steps_of("all", 6), 6))
    assert found["mask"].values.tolist() == ["Fppppp"] * 2
    coarse = run(pipe, images, Setting.plain(6).within(lambda pipe: quantise(pipe, 3), "weights of 3 bits"))["image"]
    early = run(pipe, images, _rounded(3, (1,), 6))["image"]
    distances = [float(((image - coarse) ** 2).mean()) for image in (found["image"], early, exact)]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert run(pipe, images, Setting.plain(6))["image"].equals(exact)


def test_ratios_of_steps_by_hand():
    error = xr.DataArray(np.array([[[4.0, 4.0], [1.0, 1.0], [2.0, 2.0], [0.5, 0.5]]]), dims=("bits", "when", "sample"))
    found = xr.Dataset({"error": error / 1000}, {"bits": [4], "when": list(WHEN), "rounded": ("when", [7, 3, 3, 3])})
    assert step_rows(found)[1] == [
        "4", "early", "3", "1", "0.25 [0.25, 0.25]", "0.50 [0.50, 0.50]", "2.00 [2.00, 2.00]"
    ]  # fmt: skip


def test_command_by_step(model_folder, tmp_path):
    few = "--seeds 3 --held-out 4 --labels 1,2 --steps 6 --bits 8,3 --by-step --markdown"
    where = ["--model", str(model_folder), "--work", str(tmp_path / "work"), "--out", str(tmp_path / "out.nc")]
    done = invoke(app, ["bench", "quantised", *few.split(), *where])
    assert done.exit_code == 0, done.output
    assert done.stdout.count("| early |") == 2
    found = load_table(tmp_path, "out")
    assert found["error"].dims == ("bits", "when", "sample")
    assert found["error"].sel(bits=8).mean() < found["error"].sel(bits=3).mean()
    assert found["rounded"].values.tolist() == [5, 2, 2, 2]
