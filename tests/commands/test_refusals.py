"""What cannot work is refused before anything is sampled or made: one line on stderr that names what to change."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline

import tapstudy
from tapstudy.cli import app
from tapstudy.models.pipeline import LabelPipeline
from tests.command_line import invoke as run
from tests.conftest import make_tiny_pipe
from tests.instrument.tiny_models import make
from tests.table import each_row


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "run.zarr"
    call = {"class_labels": [1], "seed": [0], "num_inference_steps": 6}
    config = tapstudy.TAPConfig(interval=3)
    tapstudy.record(make_tiny_pipe(), [call], path, config=config, progress=False)
    return path


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """A pipeline of diffusers that takes class labels, too, but is not ours."""
    folder = tmp_path_factory.mktemp("stock")
    vae = AutoencoderKL(latent_channels=1, block_out_channels=(8,), norm_num_groups=4)
    DiTPipeline(make_tiny_pipe().transformer, vae, DDIMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def nothing_is_sampled(monkeypatch):
    def called(*_, **__):
        pytest.fail("the model ran")

    monkeypatch.setattr(LabelPipeline, "__call__", called)


@pytest.fixture
def place(tmp_path, monkeypatch, nothing_is_sampled):
    """The working directory, with a file and a folder in it; nothing else may appear there."""
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder.d").mkdir()
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.d"]
    assert (tmp_path / "file").read_text() == "kept"


def refuse(*arguments):
    """The one line that a command ends with."""
    result = run(app, [str(argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert not result.stdout
    (line,) = result.stderr.splitlines()
    assert line.startswith("Error: ")
    return line


# command -> option, and suffix of the file that it writes; "" for a folder
OUTPUTS = {
    "sample": ("--out", ".png"),
    "compare": ("--out", ".html"),
    "compare ": ("--table", ".nc"),
    "compare  ": ("--work", ""),
    "fit-schedule": ("--out", ".json"),
    "fit-schedule ": ("--work", ""),
    "ablate": ("--out", ""),
    "claims": ("--out", ".md"),
    "claims ": ("--work", ""),
    "claims  ": ("--study", ""),
    "demo": ("--out", ""),
    "figures": ("--out", ""),
    "explore RECORDING": ("--out", ".html"),
    "analyze RECORDING": ("--out", ".nc"),
    "bench speed": ("--out", ".nc"),
    "bench memory": ("--out", ".nc"),
    "bench errors": ("--out", ".nc"),
    "bench frontier": ("--out", ".nc"),
    "bench frontier ": ("--work", ""),
    "bench frontier  ": ("--page", ".md"),
    "bench quantised": ("--out", ".nc"),
    "bench quantised ": ("--work", ""),
}


def words(command, recording):
    data = ["--data", Path(tapstudy.__file__).parents[1] / "data"] if command == "figures" else []
    return [*(recording if word == "RECORDING" else word for word in command.split()), *data]


@each_row("command", OUTPUTS)
def test_outputs_that_cannot_be(place, recording, command):
    """In a place that takes no files, in a recording, where a folder or a file of another kind is."""
    option, suffix = OUTPUTS[command]
    for parent, reason in ((place / "file", "is not a folder"), (place / "file" / "b", "is not a folder"),
                           (Path("/proc"), "takes no files"), (Path("/proc/self/b"), "takes no files")):  # fmt: skip
        line = refuse(*words(command, recording), option, parent / f"x{suffix}")
        for part in (f"{option} {parent / f'x{suffix}'} cannot be written", reason, "name another place"):
            assert part in line
    before = sorted(recording.rglob("*"))
    for out in (recording / f"x{suffix}", recording / "choice" / "b" / f"x{suffix}", *([] if suffix else [recording])):
        line = refuse(*words(command, recording), option, out)
        assert f"{option} {out} would write into the recording {recording}" in line
    assert sorted(recording.rglob("*")) == before
    if not suffix:
        line = refuse(*words(command, recording), option, "file")
        assert f"{place / 'file'} is not a folder" in line
        return
    assert "is a folder: name a file, such as" in refuse(*words(command, recording), option, "folder.d")
    for name in ("results", f"results{suffix}x", "results.xyz"):
        line = refuse(*words(command, recording), option, name)
        assert f"{option} {name} must end with" in line
        assert suffix in line


SAMPLERS = (
    "sample", "ablate", "claims", "bench errors", "bench record", "bench quality", "bench frontier", "bench quantised",
)  # fmt: skip


@each_row("command", SAMPLERS)
def test_models(place, stock, command, tmp_path_factory):
    def refused(model):
        return refuse(*command.split(), "--model", model)

    assert "no model 'nothing'" in refused("nothing")
    assert "no model 'file'" in refused("file")
    assert "model_index.json is missing" in refused("folder.d")
    line = refused(stock)
    told = (f"{stock} holds a DiTPipeline", "give an embedded one such as mnist-dit", f"tapstudy info {stock}")
    if command in ("sample", "ablate"):  # they take any pipeline
        told = ("say what DiTPipeline should sample", "--labels")
    for part in told:
        assert part in line
    bare = tmp_path_factory.mktemp("bare")
    make("Flux").model.save_pretrained(bare)
    assert f"{bare} holds a FluxTransformer2DModel" in refused(bare)
    (bare / "model_index.json").write_text("")
    assert f"{bare / 'model_index.json'} is not JSON" in refused(bare)


def test_models_of_an_axis(place, stock):
    line = refuse("ablate", "--axis", f"model=mnist-dit,{stock}-untrained")
    assert f"{stock}-untrained: only embedded models have an untrained twin" in line


@each_row("command", ["sample", "ablate", "bench quality", "bench frontier", "bench quantised"])
def test_guidance(place, command):
    for value in ("nan", "-inf", "-1"):
        line = refuse(*command.split(), "--guidance", value)
        assert "guidance must be a finite number of at least 0" in line


@each_row(
    ("arguments", "message"),
    [
        ("ablate --axis guidance=2,nan", "guidance must be a finite number of at least 0, got nan"),
        ("sample --fixed-shift nan", "--fixed-shift must be a finite number"),
        ("sample --shifts 0,inf", "--shifts must be numbers separated by commas"),
        ("sample --seed -1", "--seed must be at least 0 and below 2**64, got -1"),
        ("sample --seed 18446744073709551615 1,2", "got 18446744073709551616"),
        ("sample --steps 0", "--steps must be a finite number of at least 1, got 0"),
        ("sample 10", "LABELS|PROMPTS: class_labels must be integers in 0..9, got [10]"),
        ("sample --history-dtype float12", "--history-dtype must be one of"),
        ("sample --history-device tpu", "no device 'tpu'"),
        ("sample --history-device cuda", "sees no GPU"),
        ("ablate --labels -1", "class_labels must be integers in 0..9, got [-1]"),
        ("ablate --labels 10", "--labels: class_labels must be integers in 0..9, got [10]"),
        ("ablate --seeds 18446744073709551616", "--seeds must be at least 0 and below 2**64"),
        ("claims --steps 0", "--steps must be a finite number of at least 1, got 0"),
        ("claims --labels 3,11", "--labels: class_labels must be integers in 0..9, got [11]"),
        ("bench errors --steps 0", "--steps must be a finite number of at least 1"),
        ("bench errors --seed -4", "--seed plus the label must be at least 0"),
        ("bench errors --interval 0", "interval must be at least 1"),
        ("bench speed --device tpu", "no device 'tpu': choose auto, cpu or cuda"),
        ("bench speed --device cuda:1", "sees no GPU"),
        ("bench speed --dtype half", "--dtype must be one of"),
        ("bench speed --repeats 0", "--repeats must be a finite number of at least 1, got 0"),
        ("bench speed --batch-size 0", "--batch-size must be a finite number of at least 1, got 0"),
        ("bench memory --device cuda", "sees no GPU"),
        ("bench memory --history-dtypes float32,int8", "--history-dtypes must be one of"),
        ("bench frontier --steps 0", "--steps must be a finite number of at least 1"),
        ("bench frontier --held-out -1", "--held-out must be at least 0"),
        ("bench quantised --bits 1", "bits must be a whole number from 2 to 16, got 1"),
        ("bench quantised --intervals 8,8", "a number stands twice"),
        ("bench quantised --seeds 41", "the seeds [41] are both tested and held out"),
        ("explore nothing", "no readable recording at"),
        ("explore file", "no readable recording at"),
        ("analyze file --analysis rescoring --set interval=x", "--set interval: 'x' is not an integer"),
        ("analyze file --analysis rescoring --set interval", "--set must be name=value"),
        ("analyze file --analysis rescoring --set interval=4 --set interval=5", "--set interval comes twice"),
        ("info file", "no model 'file'"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU there are other devices")
def test_values(place, arguments, message):
    assert message in refuse(*arguments.split())


def test_an_emptied_file_of_a_recording_is_named(nothing_is_sampled, recording, tmp_path):
    for name in ("zarr.json", "choice/zarr.json"):
        copy = shutil.copytree(recording, tmp_path / name.replace("/", "-") / "run.zarr")
        (copy / name).write_text("")
        for command in ("info", "explore -o page.html", "analyze"):
            assert name in refuse(*command.split(), copy)
    assert not (tmp_path / "page.html").exists()


def test_no_scheduler_leaves_no_folder(place):
    pytest.importorskip("distributed")
    result = run(app, ["ablate", "--scheduler", "nonsense://1"])
    assert result.exit_code == 2
    assert "no dask scheduler answers" in result.stderr.splitlines()[-1]  # below the bar


@each_row("error", [OSError(28, "No space left on device", "x.nc"), RuntimeError("out of\nmemory")])
def test_what_fails_later_is_one_line_too(model, monkeypatch, tmp_path, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(LabelPipeline, "__call__", fails)
    line = refuse("sample", "--model", model, "--out", tmp_path / "x.png")
    assert "No space left on device: 'x.nc'" in line or "out of memory" in line


def test_home_is_expanded(model, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    result = run(app, ["sample", "1", "--model", model, "--steps", "4", "--out", "~/new/one.png"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "new" / "one.png").is_file()


def test_in_a_process_of_its_own(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "tapstudy.cli", "sample", "--out", "file/x.png"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert "cannot be written" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_compare_and_fit_refuse_before_they_load_a_model(tmp_path, monkeypatch):
    monkeypatch.setattr("tapstudy.bench.image_set.pipe_of", lambda _: pytest.fail("loaded"))
    schedule, other = (
        tapstudy.FittedSchedule(pipeline="FluxPipeline", num_steps=steps, full_steps=(0, 1)).save(
            tmp_path / f"{steps}.json"
        )
        for steps in (9, 50)
    )
    place = ("--out", str(tmp_path / "a.html"))
    for arguments, message in [
        (("compare", *place, "--methods", "tap,tab"), "no method 'tab'"),
        (("compare", *place, "--schedule", str(schedule)), "was fitted to 9 steps, and these runs have 50"),
        (("compare", *place, "--schedule", str(other)), "was fitted to a FluxPipeline, and this is a LabelPipeline"),
        (("fit-schedule", "--full-passes", "60"), "--full-passes must be below the 50 --steps"),
        (("fit-schedule", "--sigmas", "3,-1"), "--sigmas must be a finite number of at least 0"),
    ]:
        done = run(app, arguments)
        assert done.exit_code == 2
        assert message in " ".join(done.output.split())
