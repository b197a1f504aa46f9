"""`tapstudy info` on classes, pipelines, transformers and whatever else it may be given."""

from __future__ import annotations

import json
from dataclasses import replace

from tapstudy.cli import app
from tapstudy.instrument.adapters import ADAPTERS
from tests.command_line import invoke
from tests.conftest import make_tiny_pipe
from tests.instrument.tiny_models import make
from tests.table import each_row


def info(target):
    return invoke(app, ["info", str(target)])


def test_class():
    result = info("SD3Transformer2DModel")
    assert result.exit_code == 0, result.output
    for part in (
        "first input of a block's attn",
        "from latent (..., row, column) cut into square patches",
        "told apart by encoder_hidden_states",
        "SD3-medium, 1024 x 1024: 2.03 G parameters, 4096 image tokens of width 1536",
        "0.113 GB per context and sample",
    ):
        assert part in result.output


def test_pipeline(tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path)
    result = info(tmp_path)
    assert result.exit_code == 0, result.output
    for part in (
        "DiTTransformer2DModel in",
        "DiTTransformer2DModel: TAP works",
        "3 transformer_blocks",
        "class_labels",
    ):
        assert part in result.output


def test_embedded_model(tmp_path, monkeypatch):
    make_tiny_pipe().save_pretrained(tmp_path / "models" / "small")
    monkeypatch.setenv("TAPSTUDY_DATA", str(tmp_path))
    assert "TAP works" in info("small").output
    assert "give an embedded model (small)" in info("smal").output


def test_pipeline_with_two_transformers(tmp_path):
    entry = ["diffusers", "WanTransformer3DModel"]
    index = {"_class_name": "WanPipeline", "transformer": entry, "transformer_2": entry, "image_encoder": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for name in ("transformer", "transformer_2"):
        make("Wan").model.save_pretrained(tmp_path / name)
    result = info(tmp_path)
    assert result.exit_code == 0, result.output
    assert result.output.count("WanTransformer3DModel: TAP works") == 2


def test_transformer_that_fails_the_check(tmp_path, monkeypatch):
    make("Flux").model.save_pretrained(tmp_path)
    name = "FluxTransformer2DModel"
    assert info(tmp_path).exit_code == 0
    monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], streams=(0, 1)))
    result = info(tmp_path)
    assert result.exit_code == 1
    assert "PROBLEM" in result.output


def no_model(folder):
    return "neither model_index.json (a pipeline) nor config.json"


def not_json(folder):
    (folder / "config.json").write_text("{")
    return "config.json is not JSON"


def not_an_object(folder):
    (folder / "config.json").write_text("[]")
    return "should hold a JSON object, got list"


def other_class(folder):
    (folder / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    return "found UNet2DConditionModel. UNet2DConditionModel is a U-Net"


def no_class(folder):
    (folder / "config.json").write_text("{}")
    return "found a model without _class_name"


def no_weights(folder):
    make("Flux").model.save_pretrained(folder)
    next(folder.glob("*.safetensors")).unlink()
    return "the FluxTransformer2DModel in"


def broken_weights(folder):
    make("Flux").model.save_pretrained(folder)
    next(folder.glob("*.safetensors")).write_bytes(b"nonsense")
    return "restore its files"


@each_row("spoil", [no_model, not_json, not_an_object, other_class, no_class, no_weights, broken_weights])
def test_bad_folder_ends_with_one_line(spoil, tmp_path):
    (folder := tmp_path / spoil.__name__).mkdir()
    message = spoil(folder)
    result = info(folder)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_unknown_name_ends_with_one_line():
    result = info("FluxTransformer")
    assert result.exit_code == 2
    assert "no model 'FluxTransformer'" in result.output
    assert "FluxTransformer2DModel" in result.output
    assert len(result.output.strip().splitlines()) == 1
