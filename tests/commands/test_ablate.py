import xarray as xr

from tapstudy.cli import app
from tests.command_line import invoke as run
from tests.table import each_row

FEW = ["--labels", "3", "--seeds", "0,1", "--steps", "6", "--guidance", "1"]


def test_product_table_and_resume(tmp_path):
    out = tmp_path / "sweep"
    arguments = ["ablate", "--axis", "method=tap,fixed1", "--axis", "warmup_steps=1,2", "--axis", "interval=3"]
    arguments += [*FEW, "--out", str(out)]
    first = run(app, arguments)
    assert first.exit_code == 0, first.output
    files = sorted((out / "runs").glob("*.nc"))
    assert len(files) == 2 * (1 + 4)  # per seed: the reference and four settings
    times = [path.stat().st_mtime_ns for path in files]
    again = run(app, arguments)
    assert times == [path.stat().st_mtime_ns for path in files]
    assert first.stdout == again.stdout
    with xr.open_dataset(out / "sweep.nc") as dataset:
        assert dataset["method"].values.tolist() == ["tap", "tap", "fixed1", "fixed1"]
        assert dataset["warmup_steps"].values.tolist() == [1, 2, 1, 2]
        assert dataset["full_passes"].values[:, 0].tolist() == [2, 3, 2, 3]  # F..F.., FF..F.
        for cell in range(4):
            mean = dataset["psnr"].values[cell].mean()
            assert f"{mean:.2f} [" in first.stdout
    assert "mnist-dit, 6 steps, guidance 1, 2 images" in first.stdout


def test_a_failure_is_told_once(tmp_path):
    arguments = ["ablate", "--axis", "probe_depth=99", "--axis", "interval=2,3", *FEW, "--out", str(tmp_path)]
    result = run(app, arguments)
    assert result.exit_code == 1
    *_, line = result.stderr.splitlines()
    assert line.startswith("tap, 99, 2; tap, 99, 3 failed: ValueError: probe_depth 99 is beyond the last block")
    assert result.output.count("is beyond the last block") == 1
    assert result.stdout.count("failed") == 2  # in the table
    assert "Traceback" not in result.output


@each_row(
    ("arguments", "message"),
    [
        (["--axis", "intervall=4"], "no setting 'intervall'; did you mean 'interval'"),
        (["--axis", "method=tab"], "no method 'tab'; did you mean 'tap'"),
        (["--axis", "interval=x"], "'x' is not an integer"),
        (["--axis", "distance=cos"], "distance must be one of"),
        (["--axis", "interval"], "must be name=value"),
        (["--axis", "method=fixed1", "--axis", "distance=l1,l2"], "distance makes no difference here"),
        (["--seeds", "a"], "--seeds must be numbers"),
        (["--steps", "0"], "steps must be an integer of at least 1"),
    ],
)
def test_bad_input_ends_with_one_line(tmp_path, arguments, message):
    result = run(app, ["ablate", *arguments, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()
