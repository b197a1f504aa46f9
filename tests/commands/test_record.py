import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import tapstudy
from tapstudy.cli import app
from tapstudy.commands.info_run import describe_run
from tapstudy.commands.record import make_bundled
from tapstudy.recording.store import SampleWriter
from tests.command_line import invoke as run
from tests.table import each_row

OPTIONS = "--labels 1,2 --seeds 3,4 --steps 8 --guidance 1.5 --interval 4 --warmup-steps 2 --batch-size 2"
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("policy", ["teacher-forced", "tap", "fixed", "oracle"])
def test_record_and_resume(model, tmp_path, monkeypatch, policy):
    out = tmp_path / "run"
    arguments = ["record", str(out), "--model", model, *OPTIONS.split()]
    arguments += [] if policy == "teacher-forced" else ["--closed-loop", "--policy", policy]
    finish = SampleWriter.finish

    def killed(self):
        if self.sample == 2:
            raise KeyboardInterrupt
        finish(self)

    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "finish", killed)
        stopped = run(app, arguments)
    assert stopped.exit_code == 130
    assert f"stopped: finished samples are kept (2); resume with: tapstudy record --resume {out}" in stopped.output
    assert "2 of 4 finished" in describe_run(out)
    result = run(app, ["record", "--resume", str(out)])
    assert result.exit_code == 0, result.output
    assert "4 samples in" in result.output
    recording = tapstudy.open_recording(out)
    assert recording["label"].values.tolist() == ["1", "2", "1", "2"]
    assert recording["seed"].values.tolist() == [3, 3, 4, 4]
    assert np.isfinite(recording["true_error"].where(recording["is_full"] == 0, 0).values).all()
    text = describe_run(out, verify=True)
    for part in ("4 of 4 finished", "step 8", "true_error", "interval         4", "torch", "every chunk matches"):
        assert part in text


def test_resume_restores_what_the_calls_were_given(model, tmp_path):
    """Starting noise, kept in the recording; without it the command tells what it lacks."""
    out, pipe = tmp_path / "run", tapstudy.load(model)
    noise = pipe.prepare_latents(1)
    call = {"class_labels": [1], "seed": 0, "num_inference_steps": 8, "latents": noise}
    made = {"fields": ("latent", "choice"), "model": model, "progress": False}
    whole = tapstudy.record(pipe, [call], out, **made).load()
    for keep in (False, True):
        tapstudy.record(pipe, [call], out, keep_inputs=keep, **made)
        shutil.rmtree(out / "choice" / "c" / "0")
        result = run(app, ["record", "--resume", str(out)])
        assert result.exit_code == (0 if keep else 2), result.output
        assert keep or "no more than a hash of call 0, latents: resume it from Python" in " ".join(
            result.output.split()
        )
    xr.testing.assert_identical(tapstudy.open_recording(out).load(), whole)


def test_stopped_before_the_first_sample(model, tmp_path, monkeypatch):
    def stop(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(SampleWriter, "finish", stop)
    stopped = run(app, ["record", str(tmp_path / "run"), "--model", model, *OPTIONS.split()])
    assert stopped.exit_code == 130
    assert "stopped: no sample was finished yet, begin again with the same command" in stopped.output


def test_resume_from_another_folder(model, tmp_path, monkeypatch):
    """The model was given relative to the folder where the recording began."""
    monkeypatch.chdir(Path(model).parent)
    assert run(app, ["record", "run", "--model", Path(model).name, *OPTIONS.split()]).exit_code == 0
    shutil.move("run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "choice" / "c" / "3")  # a sample to make again
    monkeypatch.chdir(tmp_path)
    result = run(app, ["record", "--resume", "run"])
    assert result.exit_code == 0, result.output
    assert tapstudy.open_recording("run").sizes["sample"] == 4


def documented_commands():
    """The lines of the shell blocks on recording and analysing that name `run.zarr`."""
    pages = [(ROOT / "docs" / "how_to" / f"{page}.md").read_text() for page in ("record", "analyse", "explore")]
    blocks = "\n".join(pages).split("```bash\n")[1:]
    lines = [line for block in blocks for line in block.split("```")[0].splitlines() if "run.zarr" in line]
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.slow
def test_the_documented_recording_survives_a_kill(tmp_path):
    """Its record command is killed after the first finished samples; all lines that follow work on what it left."""
    first, *following = documented_commands()
    assert first[:3] == ["tapstudy", "record", "run.zarr"]
    assert following[0] == ["tapstudy", "record", "--resume", "run.zarr"]
    assert len(following) >= 4  # resume, two analyses, explore
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    started = [sys.executable, "-m", "tapstudy.cli", *first[1:], "--steps", "8"]  # not 50, to be quick
    with subprocess.Popen(started, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and finished(tmp_path / "run.zarr") < 2:
            time.sleep(0.05)
        process.kill()
    kept = tapstudy.open_recording(tmp_path / "run.zarr").load()
    assert 2 <= kept.sizes["sample"] < 6
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        for command in following:
            result = run(app, command[1:])
            assert result.exit_code == 0, (command, result.output)
    whole = tapstudy.open_recording(tmp_path / "run.zarr").load()
    assert whole.sizes["sample"] == 6
    xr.testing.assert_identical(whole.isel(sample=slice(kept.sizes["sample"])), kept)


def finished(path):
    try:
        return tapstudy.open_recording(path, verify=False).sizes["sample"]
    except tapstudy.RecordingError:
        return 0


def test_smoothed_in_time(model, tmp_path, monkeypatch):
    """The low-pass is part of the recording: it is noted, resumed with, and another one is refused."""
    arguments = ["--model", model, *OPTIONS.split(), "--fields", "residual"]
    for name, sigma in (("plain", "0"), ("smooth", "30"), ("cut", "30")):
        finish = SampleWriter.finish

        def killed(self, finish=finish):
            if self.sample == 2:
                raise KeyboardInterrupt
            finish(self)

        with monkeypatch.context() as patch:
            if name == "cut":
                patch.setattr(SampleWriter, "finish", killed)
            result = run(app, ["record", str(tmp_path / name), *arguments, "--smooth-time", sigma])
            assert (result.exit_code == 0) == (name != "cut"), result.output
    assert run(app, ["record", "--resume", str(tmp_path / "cut")]).exit_code == 0
    plain, smooth, cut = (tapstudy.open_recording(tmp_path / name) for name in ("plain", "smooth", "cut"))
    assert np.array_equal(smooth["residual"], cut["residual"])
    assert not np.array_equal(smooth["residual"], plain["residual"])
    assert json.loads(cut.attrs["configuration"])["smooth_time"] == 30
    assert "smooth_time" not in json.loads(plain.attrs["configuration"])
    other = run(app, ["record", str(tmp_path / "cut"), *arguments, "--smooth-time", "20"])
    assert other.exit_code == 2
    assert "another configuration" in other.output
    assert "smooth_time      30.0" in describe_run(tmp_path / "cut")


def test_record_features(model, tmp_path):
    out = tmp_path / "run"
    options = ["--preview-steps", "1,6", "--fields", "probe,residual,preview", "--depths", "0,2"]
    options += ["--stored-as", "float16"]
    options += ["--module", "feed=transformer_blocks.1.ff", "--module", "mean=transformer_blocks.0.norm1"]
    result = run(app, ["record", str(out), "--model", model, *OPTIONS.split(), *options])
    assert result.exit_code == 0, result.output
    recording = tapstudy.open_recording(out)
    assert recording["probe"].dtype == np.float16
    assert recording["depth"].values.tolist() == [0, 2]
    assert "true_error" not in recording
    assert recording["preview_step"].values.tolist() == [1, 6]
    assert recording["feed"].dims == ("sample", "context", "step", "token", "feed_channel")
    assert run(app, ["record", "--resume", str(out)]).exit_code == 0


def test_bundled(model, tmp_path):
    make_bundled(tmp_path, model=model, steps=12)
    names = ("scores", "features", "closed_loop", "gallery", "gallery_exact")
    scores, features, closed, gallery, exact = (tapstudy.open_recording(tmp_path / f"{name}.zarr") for name in names)
    assert scores.sizes["sample"] == 8
    assert {"proxy_loss", "true_error", "choice"} <= set(scores.data_vars) & set(closed.data_vars)
    assert {"probe", "residual"} <= set(features.data_vars)
    assert gallery["label"].values.tolist() == exact["label"].values.tolist() == ["2", "3", "5", "8"]
    same = {"label": ["2", "3", "5", "8"]}
    expected = scores["image"].load().swap_dims(sample="label").sel(same)
    np.testing.assert_allclose(exact["image"].load().swap_dims(sample="label").sel(same), expected, atol=2e-3)


@each_row(
    ("arguments", "message"),
    [
        ([], "say where to record"),
        (["run", "--labels", "a"], "--labels must be numbers"),
        (["run", "--fields", "probes"], "unknown fields ['probes']"),
        (["run", "--policy", "oracle"], "add --closed-loop"),
        (["run", "--guidance", "nan"], "--guidance must be a finite number, got nan"),
        (["run", "--labels", "99", "--steps", "2"], "99"),
        (["run", "--fields", "probe", "--depths", "7"], "depth 7 is beyond the last block"),
        (["run", "--module", "norm_out"], "--module is NAME=PATH"),
        (["run", "--module", "a=x", "--module", "a=y"], "--module a=... is given twice"),
        (["run", "--module", "a=norm_uot"], "no module 'norm_uot' that runs: did you mean norm_out"),
        (["--resume", "nothing"], "nothing: there is no such folder"),
        (["pyproject.toml"], "cannot write a recording at"),
    ],
)
def test_bad_input_ends_with_one_line(model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    result = run(app, ["record", *arguments, "--model", model])
    assert result.exit_code == 2
    assert result.output.count(message) == 1
    assert "Traceback" not in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]  # no half-made folder
