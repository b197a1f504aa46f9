import pytest
from PIL import Image
from typer.main import get_command

import tapstudy
from tapstudy.cli import app
from tests.command_line import invoke as run
from tests.table import each_row


def image_size(path):
    with Image.open(path) as image:
        return image.size


def test_version():
    result = run(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"tapstudy {tapstudy.__version__}\n")


def every_command(group, path=()):
    """The words that name each command and each group of commands."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from every_command(command, (*path, name))


@each_row("path", list(every_command(get_command(app))))
def test_short_help(path):
    told, long = run(app, [*path, "-h"]), run(app, [*path, "--help"])
    assert told.exit_code == 0
    assert "Usage:" in told.output
    assert told.output == long.output


def test_sample_takes_every_option(model, tmp_path):
    out = tmp_path / "new" / "digits.png"
    options = (
        "--interval 4 --warmup-steps 2 --cooldown-steps 1 --orders 0,1 --shifts 0,2 --distance l2 --residual latent "
        "--probe-depth 1 --differences divided --basis newton --clip zero --history-dtype float64 --granularity region "
        "--region-size 2 --steps 12 --guidance 1.5 --seed 3"
    )
    result = run(app, ["sample", "1,2,3", "--model", model, "--out", str(out), *options.split()])
    assert result.exit_code == 0, result.output
    assert "FF...F...F.F" in result.output
    assert image_size(out) == (24, 8)


def test_sample_smoothed_in_time(model, tmp_path):
    images = []
    for sigma in ("0", "40"):
        out = tmp_path / f"{sigma}.png"
        result = run(
            app, ["sample", "1,2", "--model", model, "--out", str(out), "--steps", "6", "--smooth-time", sigma]
        )
        assert result.exit_code == 0, result.output
        images.append(out.read_bytes())
    assert images[0] != images[1]
    result = run(app, ["sample", "1", "--model", model, "--smooth-time", "-1"])
    assert result.exit_code == 2
    assert "sigma must be a finite number of at least 0" in result.output


def test_sample_covers_the_configuration():
    from dataclasses import fields

    from tapstudy import TAPConfig

    options = {parameter.name for parameter in get_command(app).commands["sample"].params}
    assert {field.name for field in fields(TAPConfig)} - {"num_steps"} <= options


@pytest.mark.parametrize("policy", ["fixed", "oracle", "full"])
def test_sample_policies(model, tmp_path, policy):
    out = tmp_path / "digits.png"
    result = run(app, ["sample", "0,1,2,3,4,5,6,7,8,9,0", "--model", model, "--out", str(out), "--steps", "6"]
                 + ["--policy", policy, "--full-steps", "0,1,3"])  # fmt: skip
    assert result.exit_code == 0, result.output
    mask = {"full": "FFFFFF", "oracle": "FFsFss"}.get(policy, "FF.F..")
    assert mask in result.output
    assert image_size(out) == (80, 16)


@each_row(
    ("arguments", "message"),
    [
        (["sample", "--interval", "0"], "interval must be at least 1"),
        (["sample", "--intervall", "4"], "No such option"),
        (["sample", "--orders", "a"], "--orders must be numbers"),
        (["sample", "--shifts", "-1"], "shifts must be numbers of at least 0"),
        (["sample", "--history-dtype", "int8"], "--history-dtype must be one of"),
        (["sample", "--model", "nothing"], "no model 'nothing'"),
        (["sample", "11"], "class_labels must be integers in 0..9"),
        (["sample", "--probe-depth", "99"], "probe_depth 99 is beyond the last block"),
        (["train", "mnist-dit", "--data", "/nonexistent"], "no image set at"),
        (["bench", "quality", "--model", "mnist-dit", "--data", "/nonexistent"], "no image set at"),
        (["bench", "quality", "--data", "/nonexistent"], "no data set has images of 8 x 8 x 1"),
    ],
)
def test_bad_input_ends_with_one_line(model, arguments, message, tmp_path):
    if arguments[0] != "train" and "--model" not in arguments:
        arguments = [*arguments, "--model", model]
    if arguments[0] == "train":
        arguments = [*arguments, "--work", str(tmp_path), "--out", str(tmp_path / "out")]
    result = run(app, arguments)
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_bench_record(model):
    arguments = ["bench", "record", "--model", model, "--batch-size", "2", "--steps", "8", "--repeats", "1"]
    result = run(app, arguments)
    assert result.exit_code == 0, result.output
    assert "default fields" in result.output
    assert "probe and residual" in result.output


def test_bench_rescoring():
    result = run(app, ["bench", "rescoring", "--samples", "1", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    assert [line.split()[:2] for line in result.output.splitlines()] == [
        [output, candidates] for output in ("scores", "selected") for candidates in ("15", "150")
    ]


def test_roughness(model, tmp_path):
    import xarray as xr

    out, figure = tmp_path / "new" / "roughness.nc", tmp_path / "other" / "roughness.png"
    options = f"--steps 6,8 --labels 3,1 --seed 5 --guidance 1.5 --interval 4 --out {out} --figure {figure}"
    result = run(app, ["roughness", model, *options.split(), "--smooth-time", "30"])
    assert result.exit_code == 0, result.output
    with xr.open_dataset(out) as found:
        assert found["seed"].values.tolist() == [5, 6]
        assert found["label"].values.tolist() == ["3", "1"]
        assert found["steps"].values.tolist() == [6, 8]
        assert found.attrs["smooth_time"] == 30
        assert f"{found.attrs['full_passes']} full passes" in result.output
    assert image_size(figure)[0] > 500
    assert "low-pass of sigma 30" in result.output


def test_roughness_of_a_text_model(tmp_path):
    from tests.training.emoji import tiny_pipe

    tiny_pipe().save_pretrained(tmp_path)
    result = run(app, ["roughness", str(tmp_path), "--steps", "6", "--prompt", "apple", "--prompt", "plum"])
    assert result.exit_code == 0, result.output
    assert "2 images" in result.output


@each_row(
    ("options", "message"),
    [
        ("--prompt three", "--prompt must be numbers"),
        ("--labels 1 --prompt three", "--labels and --prompt both say what to sample"),
        ("--steps 5", "steps must be at least 6"),
        ("--smooth-time -1", "sigma must be a finite number of at least 0"),
        ("--guidance nan", "--guidance must be a finite number"),
        ("--out result.txt", "--out result.txt must end with .nc"),
        ("--figure /proc/x.png", "cannot be written"),
    ],
)
def test_roughness_refuses(model, options, message):
    result = run(app, ["roughness", model, *options.split()])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
