"""Pipelines from folders, and those that are loaded already."""

import os

import pytest
import torch

from tapstudy.bench.image_set import ImageSet, pipe_of
from tapstudy.models.sources import Source, fingerprint, given, name_of, open_pipeline, pipeline_folder
from tests.conftest import make_tiny_pipe
from tests.pipelines import tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sd3")
    tiny.stable_diffusion_3()[0].save_pretrained(folder)
    return folder


def test_a_source_is_a_text():
    source = Source("black-forest-labs/FLUX.1-dev", "cuda:1", "bfloat16", "model")
    assert str(source) == "black-forest-labs/FLUX.1-dev?device=cuda:1&dtype=bfloat16&offload=model"
    assert Source.parse(str(source)) == source
    assert str(Source("mnist-dit")) == "mnist-dit"
    assert Source.parse("mnist-dit") == Source("mnist-dit")
    assert Source.parse("x?dtype=bfloat16").with_options(device="cpu", dtype="") == Source("x", "cpu", "bfloat16")
    with pytest.raises(ValueError, match="no option size"):
        Source.parse("x?size=3")
    with pytest.raises(ValueError, match="dtype must be one of float32"):
        Source("x", dtype="int8")
    with pytest.raises(ValueError, match="offload must be one of none, model, sequential"):
        Source("x", offload="disk")


def test_opens_a_folder(folder):
    assert pipeline_folder("mnist-dit").name == "mnist-dit"
    pipe = open_pipeline(folder)
    assert type(pipe).__name__ == "StableDiffusion3Pipeline"
    assert pipe.transformer.dtype == torch.float32
    assert open_pipeline(f"{folder}?dtype=bfloat16").transformer.dtype == torch.bfloat16
    with pytest.raises(FileNotFoundError, match="a SD3Transformer2DModel, which is a part of a pipeline"):
        open_pipeline(folder / "transformer")
    with pytest.raises(FileNotFoundError, match=r"no model 'nothing': the embedded models are .*mnist-dit"):
        open_pipeline("nothing")
    with pytest.raises(FileNotFoundError, match="the hub gives no pipeline of that name"):
        open_pipeline("nobody/nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU weights can be moved")
def test_offloading_needs_a_gpu(folder):
    with pytest.raises(ValueError, match="there is none: leave it out"):
        open_pipeline(f"{folder}?offload=model")


def test_other_weights_are_noticed(tmp_path):
    make_tiny_pipe().save_pretrained(tmp_path / "ours")
    tiny.stable_diffusion_3()[0].save_pretrained(tmp_path / "sd3")
    for name in ("ours", "sd3"):
        before = fingerprint(str(tmp_path / name))
        assert fingerprint(str(tmp_path / name)) == before
        file = next((tmp_path / name / "transformer").glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        times = file.stat()
        file.write_bytes(content)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns + 1))
        assert fingerprint(str(tmp_path / name)) != before
    before, config = fingerprint(str(tmp_path / "ours")), tmp_path / "ours" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"shift": 1.0', '"shift": 3.0'))
    assert fingerprint(str(tmp_path / "ours")) != before
    assert fingerprint(f"{tmp_path / 'sd3'}?dtype=bfloat16") != fingerprint(str(tmp_path / "sd3"))
    assert pipe_of(str(tmp_path / "ours")) is pipe_of(str(tmp_path / "ours"))
    first = pipe_of(str(tmp_path / "ours"))
    make_tiny_pipe(seed=1).save_pretrained(tmp_path / "ours")
    assert pipe_of(str(tmp_path / "ours")) is not first


def test_a_loaded_pipeline_has_a_name():
    pipe = make_tiny_pipe()
    name = name_of(pipe)
    assert given(name) is pipe is pipe_of(name)
    assert name == name_of(make_tiny_pipe())  # the same weights
    assert name != name_of(make_tiny_pipe(seed=1))
    assert ImageSet.of(name, seeds=(0,), labels=(1,), steps=2).sample(pipe_of(name)).shape == (1, 1, 8, 8)
    assert fingerprint(name) == name.rpartition(" ")[-1]
    with torch.no_grad():
        next(pipe.transformer.parameters()).add_(1)
    assert name_of(pipe) != name
    with pytest.raises(ValueError, match="is not in this process: give the folder or hub id"):
        given("LabelPipeline in memory, 0123456789abcdef")


def test_settings_that_no_configuration_tells_are_noticed():
    pipe, call = tiny.stable_diffusion_3()
    name = name_of(pipe)
    tiny.sample(pipe, call, num_inference_steps=2)
    assert name_of(pipe) == name
    pipe.scheduler.set_shift(7.0)
    other = name_of(pipe)
    assert other != name
    pipe.transformer.transformer_blocks[0].scaling = {"lora": 0.5}  # as a LoRA's layer has it
    assert name_of(pipe) not in (name, other)


def test_a_pipeline_that_was_changed_does_not_stand_in_for_an_equal_one():
    changed, fresh = make_tiny_pipe(), make_tiny_pipe()
    name = name_of(changed)
    with torch.no_grad():
        next(changed.transformer.parameters()).add_(1)
    assert name_of(fresh) == name
    assert given(name) is fresh
