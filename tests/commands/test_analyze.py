import numpy as np
import pytest
import xarray as xr
from distributed import LocalCluster
from typer.testing import CliRunner

import tapstudy
from tapstudy.analysis.clean_image import clean_images
from tapstudy.cli import app
from tapstudy.commands.analyze import ANALYSES, Analysis
from tapstudy.models.embedded import data_folder
from tests.conftest import make_tiny_pipe
from tests.recording.runs import ALL

run = CliRunner().invoke
SCORES = data_folder() / "recordings" / "closed_loop.zarr"


def regret(recording):
    """A lazy analysis: true error of the choice over that of the best."""
    chosen = recording["choice"].clip(0)
    error = recording["true_error"].astype("float32")
    own = xr.apply_ufunc(
        lambda e, c: np.take_along_axis(e, c[..., None].astype(int), -1)[..., 0],
        error, chosen, input_core_dims=[["predictor"], []], dask="parallelized", output_dtypes=["float32"],
    )  # fmt: skip
    return xr.Dataset(
        {"regret": (own - error.min("predictor", skipna=False)).assign_attrs(long_name="regret", units="1")}
    )


def settings(recording, config):
    return xr.Dataset({"interval": ((), config.interval), "orders": ("order", list(config.orders))})


@pytest.fixture(autouse=True)
def own_analyses(monkeypatch):
    monkeypatch.setitem(ANALYSES, "regret", Analysis(__name__, "regret"))
    monkeypatch.setitem(ANALYSES, "settings", Analysis(__name__, "settings", configured=True))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A recording with every field."""
    path = tmp_path_factory.mktemp("run") / "run.zarr"
    call = {"class_labels": [1, 2], "seed": 0, "num_inference_steps": 14}
    tapstudy.record(make_tiny_pipe(), [call], path, fields=ALL, progress=False)
    return path


@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_writes_what_the_function_finds(tmp_path, where):
    out = tmp_path / "found.nc"
    arguments = ["analyze", str(SCORES), "--analysis", "regret", "--out", str(out)]
    if where == "threads":
        result = run(app, arguments)
    else:
        with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as cluster:
            result = run(app, [*arguments, "--scheduler", cluster.scheduler_address])
    assert result.exit_code == 0, result.output
    expected = regret(tapstudy.open_recording(SCORES).load())["regret"]
    with xr.open_dataset(out) as found:
        np.testing.assert_array_equal(found["regret"].values, expected.values)
        assert found["regret"].attrs == {"long_name": "regret", "units": "1"}
        assert found["label"].values.tolist() == ["2", "5"]
    mean = expected.mean(["context", "step", "token"]).mean().item()
    assert f"{mean:.4g} [" in result.stdout


def test_array_results_and_the_usual_name(tmp_path):
    """`clean_images` gives an array, not a dataset."""
    run_folder = tmp_path / "run.zarr"
    call = {"class_labels": [1, 2], "seed": 0, "num_inference_steps": 5}
    tapstudy.record(make_tiny_pipe(), [call], run_folder, fields=("latent", "image"), progress=False)
    result = run(app, ["analyze", str(run_folder), "--analysis", "clean-images"])
    assert result.exit_code == 0, result.output
    with xr.open_dataset(tmp_path / "run.clean-images.nc") as found:
        expected = clean_images(tapstudy.open_recording(run_folder))
        np.testing.assert_array_equal(found["clean_image"].values, expected.values)


@pytest.mark.parametrize("name", [name for name in ANALYSES if name not in ("regret", "settings")])
def test_every_analysis_runs(name, tmp_path, everything):
    out = tmp_path / "found.nc"
    result = run(app, ["analyze", str(everything), "--analysis", name, "--out", str(out)])
    assert result.exit_code == 0, result.output
    with xr.open_dataset(out) as found:
        assert all("units" in variable.attrs for variable in found.data_vars.values())
        assert any(np.isfinite(variable.values.astype(float)).any() for variable in found.data_vars.values())


def test_settings_reach_the_function(tmp_path):
    out = tmp_path / "found.nc"
    arguments = ["analyze", str(SCORES), "--analysis", "settings", "--out", str(out), "--set", "interval=5"]
    result = run(app, [*arguments, "--set", "orders=0+2"])
    assert result.exit_code == 0, result.output
    with xr.open_dataset(out) as found:
        assert found["interval"] == 5
        assert found["orders"].values.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([str(SCORES), "--analysis", "proxy-corelation"], "did you mean 'proxy-correlation'"),
        ([str(SCORES), "--analysis", "zzz"], "there are proxy-correlation"),
        (
            [str(SCORES), "--analysis", "regret", "--set", "interval=4"],
            "regret takes no --set; rescoring, stored-probes, settings",
        ),
        ([str(SCORES), "--analysis", "settings", "--set", "intervall=4"], "did you mean 'interval'"),
        ([str(SCORES), "--analysis", "settings", "--set", "method=tap"], "TAPConfig has no field 'method'"),
        ([str(SCORES), "--analysis", "settings", "--set", "interval=4,5"], "interval has several values"),
        (["nothing.zarr"], "no readable recording at"),
    ],
)
def test_bad_input_ends_with_one_line(arguments, message, tmp_path):
    out = tmp_path / "out.nc"
    result = run(app, ["analyze", *arguments, "--out", str(out)])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output
    assert not out.exists()
