import numpy as np
import pytest
from typer.testing import CliRunner

import tapstudy
from tapstudy.cli import app
from tapstudy.commands.info_run import describe_run
from tapstudy.commands.record import make_bundled
from tapstudy.recording.store import SampleWriter

run = CliRunner().invoke


OPTIONS = "--labels 1,2 --seeds 3,4 --steps 8 --guidance 1.5 --interval 4 --warmup-steps 2 --batch-size 2"


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
        assert run(app, arguments).exit_code != 0
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


def test_record_features(model, tmp_path):
    out = tmp_path / "run"
    options = ["--fields", "probe,residual", "--depths", "0,2", "--dtype", "float16"]
    result = run(app, ["record", str(out), "--model", model, *OPTIONS.split(), *options])
    assert result.exit_code == 0, result.output
    recording = tapstudy.open_recording(out)
    assert recording["probe"].dtype == np.float16
    assert recording["depth"].values.tolist() == [0, 2]
    assert "true_error" not in recording


def test_bundled(model, tmp_path):
    make_bundled(tmp_path, model=model, steps=12)
    scores, features, closed = (
        tapstudy.open_recording(tmp_path / f"{name}.zarr") for name in ("scores", "features", "closed_loop")
    )
    assert scores.sizes["sample"] == 8
    assert {"proxy_loss", "true_error", "choice"} <= set(scores.data_vars) & set(closed.data_vars)
    assert {"probe", "residual"} <= set(features.data_vars)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "say where to record"),
        (["run", "--labels", "a"], "--labels must be numbers"),
        (["run", "--fields", "probes"], "unknown fields ['probes']"),
        (["run", "--policy", "oracle"], "add --closed-loop"),
        (["--resume", "nothing"], "no readable recording at nothing"),
        (["pyproject.toml"], "cannot write a recording at"),
    ],
)
def test_bad_input_ends_with_one_line(model, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    result = run(app, ["record", *arguments, "--model", model])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
