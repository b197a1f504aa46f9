"""What cannot be found is never read as missing values: files, folders, steps."""

import json
import os
import shutil
import warnings

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import tapstudy
from tapstudy.commands.info_run import describe_run
from tapstudy.recording.damage import find_damage
from tapstudy.recording.export import to_netcdf, to_zarr
from tapstudy.recording.store import SampleWriter
from tests.conftest import make_tiny_pipe
from tests.pipelines.tiny import FACTORIES
from tests.recording.runs import CONFIG, calls_of

TWO = calls_of([(1, 1)], [(2, 2)])
ARGUMENTS = {"config": CONFIG, "fields": ("choice", "true_error", "probe", "image"), "progress": False}


def record(path, calls=TWO, pipe=None, **changes):
    return tapstudy.record(pipe or make_tiny_pipe(), calls, path, **ARGUMENTS | changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "run.zarr"
    record(path)
    return path


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run.zarr")


@pytest.fixture(scope="module")
def scratch(whole):
    return shutil.copytree(whole, whole.with_name("scratch.zarr"))


def read(path, verify=True):
    return tapstudy.open_recording(path, verify=verify).load()


# Files


@settings(max_examples=40)
@given(data=st.data())
def test_any_file_lost_or_cut_is_named(scratch, data):
    files = sorted(path for path in scratch.rglob("*") if path.is_file())
    file = data.draw(st.sampled_from(files), label="file")
    content = file.read_bytes()
    keep = data.draw(st.none() | st.integers(0, len(content.rstrip()) - 1), label="bytes kept")
    try:
        if keep is None:
            file.unlink()
        else:
            file.write_bytes(content[:keep])
        named = str(file.relative_to(scratch)) if file.parent != scratch else "zarr.json"
        with pytest.raises(tapstudy.RecordingError, match=named):
            read(scratch)
        with pytest.raises(tapstudy.RecordingError, match=named):
            describe_run(scratch, verify=True)
    finally:
        file.write_bytes(content)


def test_any_folder_lost_is_named(run, whole):
    arrays = [path for path in whole.iterdir() if path.is_dir()]
    for folder in (*arrays, *(path / "c" for path in arrays), whole / "probe" / "c" / "1"):
        lost = run / folder.relative_to(whole)
        lost.rename(run.with_name("elsewhere"))
        name = lost.relative_to(run).parts[0]
        with pytest.raises(tapstudy.RecordingError, match=name):
            read(run)
        with pytest.raises(tapstudy.RecordingError, match=name):
            describe_run(run, verify=True)
        run.with_name("elsewhere").rename(lost)
    xr.testing.assert_identical(read(run), read(whole))


def test_lost_after_opening(run):
    """Without looking at the files when it is opened, and for what is lost later."""
    for verify in (True, False):
        opened = tapstudy.open_recording(run, verify=verify)
        shutil.rmtree(run / "choice" / "c")
        with pytest.raises(tapstudy.RecordingError, match=r"damaged: choice \(choice/c/0/.* is missing; record again"):
            opened["choice"].isel(sample=0).load()
        with pytest.raises(tapstudy.RecordingError, match=r"damaged: choice \(choice/c/1/.* is missing"):
            opened["choice"].isel(sample=1).load()
        record(run)
    opened = tapstudy.open_recording(run)
    run.rename(run.with_name("moved"))
    with pytest.raises(tapstudy.RecordingError, match=r"is no longer there: true_error"):
        opened["true_error"].load()
    assert np.isfinite(read(run.with_name("moved"))["probe"]).all()


def test_mended_by_recording_again(run, whole):
    for lost in ("true_error/c/1", "finished/c/0", "image/c", "finished/c"):
        shutil.rmtree(run / lost) if (run / lost).is_dir() else (run / lost).unlink()
        record(run)
        xr.testing.assert_identical(read(run), read(whole))
    (run / "choice" / "zarr.json").unlink()
    with pytest.raises(
        tapstudy.RecordingError, match=r"beyond mending: choice \(choice/zarr.json\) is missing; restore"
    ):
        record(run)


def test_data_without_a_root_that_lists_it_is_kept(run, whole):
    root = json.loads((run / "zarr.json").read_text())
    (run / "zarr.json").write_text(json.dumps(root | {"consolidated_metadata": None}))
    for use in (tapstudy.open_recording, record):
        with pytest.raises(tapstudy.RecordingError, match=r"zarr.json lists no arrays .*consolidate_metadata"):
            use(run)
    (run / "zarr.json").write_text(json.dumps(root))
    xr.testing.assert_identical(read(run), read(whole))


def test_unfinished_samples_are_no_damage(tmp_path, monkeypatch):
    finish = SampleWriter.finish
    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "finish", lambda self: finish(self) if self.sample == 0 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record(tmp_path / "run")
    assert find_damage(tmp_path / "run", [0], checksums=True) == []
    assert read(tmp_path / "run")["seed"].values.tolist() == [1]


# Paths


def test_relative_path_and_another_folder(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(whole.parent)
    opened, recorded = tapstudy.open_recording(whole.name), record(whole.name)
    monkeypatch.chdir(tmp_path)
    for found in (opened, recorded):
        xr.testing.assert_identical(found.load(), read(whole))


def test_another_folder_while_recording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = make_tiny_pipe()
    (tmp_path / "other").mkdir()
    pipe.transformer.register_forward_pre_hook(lambda *_: os.chdir(tmp_path / "other"))
    assert record("run", pipe=pipe).load().sizes["sample"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "run"]
    assert not list((tmp_path / "other").iterdir())


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record("~/run.zarr")
    to_netcdf("~/run.zarr", "~/run.nc")
    to_zarr("~/run.zarr", "~/copy.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.zarr", "run.nc", "run.zarr"]
    assert tapstudy.open_recording("~/run.zarr").sizes["sample"] == 2
    assert "every chunk matches" in describe_run(tmp_path / "run.zarr", verify=True)
    for use in (tapstudy.open_recording, record):
        with pytest.raises(tapstudy.RecordingError, match="~nobody-of-this-name"):
            use("~nobody-of-this-name/run.zarr")


# Steps


def lose_from(pipe, call, step):
    """From that step of that call on, the transformer is another one, which nobody records."""
    count = [0]
    other = make_tiny_pipe().transformer
    kept = pipe.transformer

    def swap(_module, _args):
        count[0] += 1
        if count[0] == call * 8 + step:
            pipe.transformer = other

    kept.register_forward_pre_hook(swap)


@pytest.mark.parametrize(("step", "seen"), [(0, 0), (7, 7)])
def test_steps_that_nobody_saw(tmp_path, step, seen):
    """All but some, and none."""
    pipe = make_tiny_pipe()
    lose_from(pipe, 1, step)
    with pytest.raises(tapstudy.RecordingError, match=rf"sample 1: {seen} of its 8 steps were seen.*are kept"):
        record(tmp_path / "run", pipe=pipe)
    assert read(tmp_path / "run")["seed"].values.tolist() == [1]
    assert np.isfinite(record(tmp_path / "run")["probe"]).all()


def test_no_step_of_the_first_sample(tmp_path):
    pipe = make_tiny_pipe()
    call = type(pipe).__call__

    class Unseen(type(pipe)):
        def __call__(self, *args, **kwargs):
            self.transformer = make_tiny_pipe().transformer
            return call(self, *args, **kwargs)

    unseen = Unseen(pipe.transformer, pipe.scheduler)
    unseen.set_progress_bar_config(disable=True)
    with pytest.raises(tapstudy.RecordingError, match="made no step of the transformer"):
        record(tmp_path / "run", pipe=unseen)


def test_a_context_that_nobody_saw(tmp_path):
    pipe, call = FACTORIES["wan"]()
    call = {**call, "output_type": "latent"}
    calls = [call | {"seed": 0, "guidance_scale": 5.0}, call | {"seed": 1, "guidance_scale": 1.0}]
    with pytest.raises(
        tapstudy.RecordingError, match="sample 1: no step of context 'uncond', which the samples before"
    ):
        record(tmp_path / "run", calls=calls, pipe=pipe, fields=("choice",))
    assert read(tmp_path / "run")["seed"].values.tolist() == [0]


def test_two_transformers_share_the_steps(tmp_path):
    pipe, call = FACTORIES["wan22"]()
    calls = [{**call, "output_type": "latent", "seed": seed} for seed in (0, 1)]
    run = record(tmp_path / "run", calls=calls, pipe=pipe, fields=("residual",), transformer="transformer").load()
    told = np.isfinite(run["residual"]).all(["token", "channel"])
    assert told.any("step").all()
    assert (told == told[0, 0]).all()


# Versions


def test_gone_on_with_under_other_versions(tmp_path, monkeypatch):
    finish = SampleWriter.finish

    def record_until(sample):
        with monkeypatch.context() as patch:
            patch.setattr(SampleWriter, "finish", lambda self: finish(self) if self.sample < sample else 1 / 0)
            with pytest.raises(ZeroDivisionError):
                record(tmp_path, calls=three)

    def pretend(version):
        root = json.loads((tmp_path / "zarr.json").read_text())
        versions = json.loads(root["attributes"]["versions"])
        root["attributes"]["versions"] = json.dumps(versions | {"torch": version})
        (tmp_path / "zarr.json").write_text(json.dumps(root))

    three = calls_of([(1, 1)], [(2, 2)], [(3, 3)])
    record_until(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        record_until(2)  # the same versions: nothing to say
    pretend("2.1.0")
    with pytest.warns(UserWarning, match=r"resumed under other versions: torch 2\.1\.0, then"):
        run = record(tmp_path, calls=three)
    told = json.loads(run.attrs["versions"])
    assert told["torch"] == f"2.1.0, then {torch.__version__}"
    assert told["xarray"] == xr.__version__
    assert f"torch 2.1.0, then {torch.__version__}" in describe_run(tmp_path, verify=True)
    again = record(tmp_path, calls=three)  # complete: nothing was made
    assert again.attrs == run.attrs
