"""What the page holds, without a browser."""

import json
import re

import numpy as np
import pytest

from tapstudy.cli import app
from tapstudy.explorer.page import page, write_page
from tapstudy.explorer.prepare import prepare, prepare_pair
from tapstudy.plots.style import predictor_colour
from tapstudy.recording.export import to_zarr
from tests.command_line import invoke
from tests.explorer.decode import dequantise, unpack


def data_of(text):
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


@pytest.fixture(scope="module")
def text(page_path):
    return page_path.read_text()


def test_four_samples_of_the_embedded_model_are_small(page_path, prepared):
    assert prepared.sizes["sample"] == 4
    assert page_path.stat().st_size < 5e6


def test_nothing_is_loaded_from_anywhere(text):
    assert not re.findall(r"(?i)\b(?:https?|ftp|wss?)://|//cdn|@import|\bsrc\s*=|<link|\bfetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text


def test_decoded_values_are_those_of_the_recording(text, prepared):
    arrays = data_of(text)["arrays"]
    for name in ("choice", "is_full", "distance", "is_distinct", "image"):
        np.testing.assert_array_equal(unpack(arrays[name]), prepared[name].values)
    for name in ("proxy_loss", "true_error", "regret"):
        scale, exact = arrays[name]["scale"], prepared[name].values.astype(np.float64)
        found = dequantise(unpack(arrays[name]), scale)
        np.testing.assert_array_equal(np.isnan(found), np.isnan(exact))
        np.testing.assert_array_equal(found == 0, exact == 0)
        assert scale["error"] < 0.0025
        np.testing.assert_allclose(found, exact, rtol=scale["error"] * 1.000001, equal_nan=True)


def test_labels(text, prepared):
    about = data_of(text)
    assert about["title"] == "mnist-dit, TAPPolicy, teacher-forced"
    assert [sample["number"] for sample in about["samples"]] == [0, 1, 2, 3]
    assert about["contexts"] == ["cond", "uncond"]
    assert about["grid"] == [1, 14, 14]
    for p, predictor in enumerate(about["predictors"]):
        colour = predictor_colour(int(prepared["order"][p]), float(prepared["shift"][p]), 4)
        drawn = [int(predictor["colour"][i : i + 2], 16) / 255 for i in (1, 3, 5)]
        np.testing.assert_allclose(drawn, colour, atol=0.5 / 255 + 1e-9)


def test_probes_and_forming_images_are_there_if_recorded(tiny):
    data = prepare(tiny)
    about = data_of(page(data))
    assert [layer["name"] for layer in about["layers"]][-1] == "probe_norm"
    np.testing.assert_array_equal(unpack(about["arrays"]["image"]), data["image"].values)


def test_text_of_the_recording_is_escaped(tiny):
    evil = "</script><script>alert('{{data}} {{style}}')</script><b>&"
    data = prepare(tiny.assign_coords(label=("sample", [evil] * 3)).assign_attrs(configuration="", title=evil))
    text = page(data)
    assert evil not in text
    assert "<b>&" not in text
    about = data_of(text)
    assert about["title"] == evil
    assert evil in about["samples"][0]["name"]
    assert text.count("</script>") == page(prepare(tiny)).count("</script>")


def test_where_it_can_be_written(prepared, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere; make it first"):
        write_page(prepared, tmp_path / "nowhere" / "page.html")
    with pytest.raises(ValueError, match="it is a folder"):
        write_page(prepared, tmp_path)


def test_two_recordings_in_one_page(tiny, accelerated, tmp_path):
    first, second = prepare_pair(tiny, accelerated)
    about = data_of(page(first, beside=second))
    np.testing.assert_array_equal(unpack(about["arrays"]["choice"]), first["choice"])
    np.testing.assert_array_equal(unpack(about["beside"]["arrays"]["choice"]), second["choice"])
    assert about["beside"]["title"] == "LabelPipeline, TAPPolicy, closed-loop"
    to_zarr(tiny, tmp_path / "one")
    to_zarr(accelerated, tmp_path / "other")
    arguments = [
        "explore",
        str(tmp_path / "one"),
        "--beside",
        str(tmp_path / "other"),
        "-o",
        str(tmp_path / "page.html"),
    ]
    result = invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert data_of((tmp_path / "page.html").read_text())["beside"]["title"] == about["beside"]["title"]


def test_command(bundled, tmp_path):
    from tapstudy.models.embedded import data_folder

    out = tmp_path / "page.html"
    recordings = data_folder() / "recordings"
    run = invoke
    result = run(app, ["explore", str(recordings / "scores.zarr"), "-o", str(out), "--samples", "5,1"])
    assert result.exit_code == 0, result.output
    assert [sample["number"] for sample in data_of(out.read_text())["samples"]] == [5, 1]
    for arguments, message in (
        (["scores.zarr", "--samples", "8"], "different numbers from 0 to 7"),
        (["scores.zarr", "--samples", "a"], "--samples must be numbers"),
        (["scores.zarr", "-o", str(tmp_path / "no" / "page.html")], "there is no folder"),
        (["features.zarr"], "['choice', 'proxy_loss', 'true_error'] are missing"),
        (["nothing.zarr"], "no readable recording"),
    ):
        result = run(app, ["explore", str(recordings / arguments[0]), *arguments[1:]])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
