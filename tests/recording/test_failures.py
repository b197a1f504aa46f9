"""Whatever goes wrong is said, and finished samples stay."""

import errno
import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch
import xarray as xr

import tapstudy
from tapstudy.commands.info_run import describe_run
from tapstudy.policies.base import Policy
from tapstudy.recording.store import SampleWriter
from tests.conftest import make_tiny_pipe
from tests.recording.runs import CONFIG, calls_of
from tests.table import each_row

TWO = calls_of([(1, 1)], [(2, 2)])


def record(path, calls=TWO, pipe=None, **changes):
    arguments = {"config": CONFIG, "fields": ("choice", "true_error", "residual"), "progress": False} | changes
    return tapstudy.record(pipe or make_tiny_pipe(), calls, path, **arguments)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run"
    record(path)
    return path


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def test_what_is_in_the_way_stays(tmp_path):
    """A file, a folder of something else, another zarr store."""
    file = tmp_path / "thesis.txt"
    file.write_text("draft")
    for path in (file, file / "run"):
        with pytest.raises(tapstudy.RecordingError, match="cannot write a recording at"):
            record(path)
    with pytest.raises(tapstudy.RecordingError, match=r"already holds something else \(thesis.txt\)"):
        record(tmp_path)
    assert file.read_text() == "draft"
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "other", consolidated=False)
    with pytest.raises(tapstudy.RecordingError, match="not a tapstudy recording"):
        record(tmp_path / "other")
    assert (tmp_path / "other" / "a").is_dir()


def test_other_configuration(run):
    with pytest.raises(tapstudy.RecordingError, match=r"another configuration \(dtype: 'float32' there, 'float16'"):
        record(run, dtype="float16")
    with pytest.raises(tapstudy.RecordingError, match=r"\(calls: .* policy, config, interval: 4 there, 8"):
        record(run, calls=TWO[:1], config=tapstudy.TAPConfig())
    assert tapstudy.open_recording(run).sizes["sample"] == 2


def chunk_of(run, name, sample):
    return next(path for path in sorted((run / name / "c" / str(sample)).rglob("*")) if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize("damage", [flip, truncate])
def test_changed_chunk(run, whole, damage):
    damage(chunk_of(run, "true_error", 1))
    dataset = tapstudy.open_recording(run)
    dataset["residual"].load()
    with pytest.raises(tapstudy.RecordingError, match=r"damaged: true_error \(true_error/c/1/.*\) does not match"):
        dataset.load()
    with pytest.raises(tapstudy.RecordingError, match=r"DAMAGED: 1 chunks\n  true_error of sample 1 .* does not match"):
        describe_run(run, verify=True)
    xr.testing.assert_identical(record(run).load(), tapstudy.open_recording(whole).load())


def test_changed_coordinate(run):
    flip(run / "seed" / "c" / "0")
    with pytest.raises(tapstudy.RecordingError, match=r"damaged: seed \(seed/c/0\)"):
        tapstudy.open_recording(run).load()
    with pytest.raises(tapstudy.RecordingError, match="damaged beyond mending: seed"):
        record(run)


def test_newer_schema(run):
    metadata = json.loads((run / "zarr.json").read_text())
    metadata["attributes"]["schema_version"] = 2
    (run / "zarr.json").write_text(json.dumps(metadata))
    for use in (tapstudy.open_recording, record, describe_run):
        with pytest.raises(tapstudy.RecordingError, match="schema version 2, this tapstudy reads up to 1"):
            use(run)


def test_unreadable(run, tmp_path):
    with pytest.raises(tapstudy.RecordingError, match="no readable recording"):
        tapstudy.open_recording(tmp_path / "nothing")
    (run / "zarr.json").write_text("{")
    for use in (tapstudy.open_recording, record, describe_run):
        with pytest.raises(tapstudy.RecordingError, match="no readable recording"):
            use(run)


def spoil(pipe, value):
    """From sample 2 on, the last block returns `value`."""
    runs = []

    def replace(_module, _args, output):
        runs.append(1)
        return torch.full_like(output, value) if len(runs) > 8 else output

    return pipe.transformer.transformer_blocks[-1].register_forward_hook(replace)


@pytest.mark.parametrize(
    ("value", "dtype", "hint"),
    [(float("nan"), "float32", "model's dtype"), (1e6, "float16", "float32")],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_values_that_are_not_finite(tmp_path, value, dtype, hint):
    pipe = make_tiny_pipe()
    spoil(pipe, value)
    with pytest.raises(tapstudy.RecordingError, match=rf"sample 1, step 0, .* are not finite .*{hint}"):
        record(tmp_path / "run", pipe=pipe, dtype=dtype, fields=("residual",))
    assert tapstudy.open_recording(tmp_path / "run").load()["seed"].values.tolist() == [1]
    assert record(tmp_path / "run", dtype=dtype, fields=("residual",)).sizes["sample"] == 2


def test_too_little_room(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 100))
    with pytest.raises(tapstudy.RecordingError, match=r"may need .* GB, but .* has 0.0 GB free"):
        record(tmp_path / "run")
    assert record(tmp_path / "run", force=True).sizes["sample"] == 2


def test_disk_full_at_the_second_sample(tmp_path, monkeypatch):
    flush = SampleWriter._flush

    def full(self, key):
        if self.sample == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "_flush", full)
        with pytest.raises(tapstudy.RecordingError, match=r"No space left on device.*finished samples are kept"):
            record(tmp_path / "run")
    assert tapstudy.open_recording(tmp_path / "run").load()["seed"].values.tolist() == [1]
    assert record(tmp_path / "run").sizes["sample"] == 2


def test_samples_of_another_length(tmp_path):
    calls = [*calls_of([(1, 1)]), *calls_of([(2, 2)], steps=9)]
    with pytest.raises(tapstudy.RecordingError, match="all calls of a recording must agree in steps"):
        record(tmp_path / "run", calls=calls)
    assert tapstudy.open_recording(tmp_path / "run").sizes["sample"] == 1


@each_row(
    ("changes", "error", "message"),
    [
        ({"fields": ("true_eror",)}, ValueError, r"unknown fields \['true_eror'\]: choose from"),
        ({"reduce": {"probe": abs}}, ValueError, r"reduce names \['probe'\], which are no features or modules that"),
        ({"dtype": "int8"}, ValueError, "dtype must be one of"),
        ({"calls": []}, ValueError, "no calls to record"),
        ({"calls": [{"class_labels": [1]}]}, ValueError, "call 0: needs 'seed', an integer or a list of 1"),
        ({"calls": [{"class_labels": [1, 2], "seed": [1]}]}, ValueError, "a list of 2 integers"),
        ({"calls": [{"class_labels": [1], "seed": True}]}, ValueError, "needs 'seed'"),
        ({"calls": [{"class_labels": [1], "seed": 1, "generator": torch.Generator()}]}, TypeError, "JSON could hold"),
        ({"depths": (9,), "fields": ("probe",)}, ValueError, "depth 9 is beyond the last block"),
        ({"config": None, "policy": Policy}, TypeError, "needs a policy with anchors"),
        ({"policy": tapstudy.policies.tap.TAPPolicy()}, ValueError, "not both"),
        ({"fields": ("image",), "calls": calls_of([(1, 1)], output_type="latent")}, ValueError, "returned no images"),
        ({"transformer": "unet"}, ValueError, "no transformer 'unet'"),
        (
            {"config": tapstudy.TAPConfig(residual="latent"), "fields": ("latent_residual",)},
            ValueError,
            "leave latent_residual out",
        ),
    ],
)
def test_arguments_that_cannot_be_meant(tmp_path_factory, changes, error, message):
    path = tmp_path_factory.mktemp("asked") / "run"
    with pytest.raises(error, match=message):
        record(path, **changes)
    with pytest.raises(tapstudy.RecordingError):
        tapstudy.open_recording(path)


def test_residual_in_latent_space(tmp_path):
    config = tapstudy.TAPConfig(interval=4, warmup_steps=2, residual="latent")
    run = record(tmp_path / "latent", config=config).load()
    other = record(tmp_path / "hidden", fields=("latent_residual",)).load()
    np.testing.assert_array_equal(run["residual"].values, other["latent_residual"].values)
