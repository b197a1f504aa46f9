import importlib
import shutil

import numpy as np
import pytest
import xarray as xr
from distributed import LocalCluster

import tapstudy
from tapstudy.analysis.clean_image import clean_images
from tapstudy.analysis.own_settings import settle
from tapstudy.analysis.result import means
from tapstudy.cli import app
from tapstudy.commands.analyze import ANALYSES, Analysis
from tapstudy.models.embedded import data_folder
from tests.command_line import invoke as run
from tests.conftest import make_tiny_pipe
from tests.recording.runs import ALL
from tests.table import each_row

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


def regret_summary(found):
    return means(found, "regret")


def settings(recording, changes):
    config = settle(recording, changes, "settings").config
    return xr.Dataset({"interval": ((), config.interval), "orders": ("order", list(config.orders))})


@pytest.fixture(autouse=True)
def own_analyses(monkeypatch):
    monkeypatch.setitem(ANALYSES, "regret", Analysis(__name__, "regret", "regret_summary"))
    monkeypatch.setitem(ANALYSES, "settings", Analysis(__name__, "settings", None, configured=True))


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


def test_settings_reach_the_function(tmp_path):
    out = tmp_path / "found.nc"
    arguments = ["analyze", str(SCORES), "--analysis", "settings", "--out", str(out), "--set", "interval=5"]
    result = run(app, [*arguments, "--set", "orders=0+2"])
    assert result.exit_code == 0, result.output
    with xr.open_dataset(out) as found:
        assert found["interval"] == 5
        assert found["orders"].values.tolist() == [0, 2]


def rows_of(text):
    """Variable -> mean, of the table that is printed."""
    lines = [[part.strip() for part in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│")]
    return {line[0]: float(line[2].split(" [")[0]) for line in lines if line[0] and line[2] != "no value"}


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """Of the embedded model, so that not all measures are alike: N = 3 and w = 2."""
    path = tmp_path_factory.mktemp("scored") / "run.zarr"
    calls = [{"class_labels": [3], "seed": [0], "num_inference_steps": 9},
             {"class_labels": [8], "seed": [1], "num_inference_steps": 9}]  # fmt: skip
    config = tapstudy.TAPConfig(interval=3, warmup_steps=2)
    tapstudy.record(tapstudy.load("mnist-dit"), calls, path, fields=ALL[:7], config=config, progress=False)
    return path


def test_the_choice_is_summarised_and_not_all_predictors(scored, tmp_path):
    result = run(app, ["analyze", str(scored), "--analysis", "rescoring", "--out", str(tmp_path / "out.nc")])
    assert result.exit_code == 0, result.output
    rows, recorded = rows_of(result.stdout), tapstudy.open_recording(scored).load()
    skipped = recorded.isel(step=(recorded["is_full"][0, 0] == 0).values)
    over, index = ["context", "step", "token"], skipped["choice"].astype(int)
    for name in ("true_error", "proxy_loss"):
        assert rows[name] == pytest.approx(float(skipped[name].isel(predictor=index).mean(over).mean()), rel=1e-3)
    best = skipped["true_error"].min("predictor")
    assert rows["best_true_error"] == pytest.approx(float(best.mean()), rel=1e-3)
    assert rows["regret"] == pytest.approx(rows["true_error"] - rows["best_true_error"], rel=1e-2)
    orders = skipped["order"].values[index.values]
    for order in range(3):
        assert rows[f"order_share, order {order}"] == pytest.approx((orders == order).mean(), rel=1e-3)
    assert len(rows) == 7  # neither is_full, distance, is_distinct nor the image


ROWS = {
    "choice-maps": {"order_share", "shift_share"},
    "choice-statistics": {"order_share", "shift_share", "entropy", "moran_order", "moran_shift", "switch_within",
                          "switch_across"},
    "image-content": {"brightness", "gradient", "texture", "foreground", "class_share"},
    "heterogeneity": {"velocity", "relative_velocity", "acceleration", "curvature", "turning_angle",
                      "high_frequency_share", "effective_order_share"},
    "proxy-correlation": {"spearman", "kendall", "pearson", "top1", "regret", "normalised_regret"},
    "rescoring": {"proxy_loss", "true_error", "best_true_error", "regret", "order_share"},
    "stored-probes": {"changed", "true_error", "true_error_change"},
    "clean-images": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in ANALYSES if name not in ("regret", "settings")])
def test_every_analysis_has_no_means_of_codes_or_constants(name, scored, tmp_path):
    """Shares instead of means of names, each set of which adds up to 1; the rest differs between two images."""
    result = run(app, ["analyze", str(scored), "--analysis", name, "--out", str(tmp_path / "out.nc")])
    assert result.exit_code == 0, result.output
    with xr.open_dataset(tmp_path / "out.nc") as found:
        assert all("units" in variable.attrs for variable in found.data_vars.values())
        assert any(np.isfinite(variable.values.astype(float)).any() for variable in found.data_vars.values())
    if name == "clean-images":
        assert "│" not in result.stdout
        assert "clean_image (sample 2, step 8" in result.stdout
        return
    rows = rows_of(result.stdout)
    assert {row.split(",")[0] for row in rows} == ROWS[name]
    with xr.open_dataset(tmp_path / "out.nc") as found:
        chosen = ANALYSES[name]
        summary = getattr(importlib.import_module(chosen.module), chosen.summary)(found)
        assert set(map(str, summary.data_vars)) == ROWS[name]
        for kind, values in summary.data_vars.items():
            if values.ndim == 2:
                np.testing.assert_allclose(values.sum(values.dims[1]), 1, rtol=1e-6)
                assert sum(mean for row, mean in rows.items() if row.split(",")[0] == kind) == pytest.approx(
                    1, abs=1e-3
                )
            assert not np.array_equal(values[0], values[1]), kind


def test_its_own_schedule_and_a_name_for_every_setting(scored, tmp_path):
    recording = shutil.copytree(scored, tmp_path / "run.v1.zarr")
    arguments = ["analyze", str(recording), "--analysis", "rescoring"]
    first = run(app, arguments)
    assert "full steps FF..F..F.: the recording's own" in first.stdout
    with xr.open_dataset(tmp_path / "run.v1.rescoring.nc") as found:
        np.testing.assert_array_equal(found["choice"], tapstudy.open_recording(scored)["choice"])
    second = run(app, [*arguments, "--set", "interval=5", "--set", "orders=0+1"])
    assert "full steps FF....F..: as asked" in second.stdout
    third = run(app, [*arguments, "--set", "distance=l2", "--set", "shifts=0+0.5"])
    assert "full steps FF..F..F.: the recording's own" in third.stdout
    names = {"run.v1.rescoring.interval=5.orders=0+1.nc", "run.v1.rescoring.distance=l2.shifts=0.0+0.5.nc"}
    assert {path.name for path in tmp_path.iterdir()} == {"run.v1.zarr", "run.v1.rescoring.nc", *names}
    before = (tmp_path / "run.v1.rescoring.nc").read_bytes()
    again = run(app, arguments)
    assert again.exit_code == 2
    assert "is there already: choose another --out, or replace it with --overwrite" in again.output
    assert (tmp_path / "run.v1.rescoring.nc").read_bytes() == before
    assert run(app, [*arguments, "--overwrite"]).exit_code == 0


def test_no_result_in_a_recording_or_in_place_of_a_folder(scored, tmp_path):
    recording = shutil.copytree(scored, tmp_path / "run.zarr")
    inside = "would write into the recording"
    for out, message in ((recording, inside), (recording / "a" / "b.nc", inside), (tmp_path, "is a folder")):
        result = run(app, ["analyze", str(recording), "--out", str(out), "--overwrite"])
        assert result.exit_code == 2
        assert message in " ".join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ["run.zarr"]
    assert not (recording / "a").exists()


@each_row(("where", "asked_in"), [(".", "here/run.zarr"), ("../here/run.zarr", "here"), ("~/here/run.zarr", ".")])
def test_beside_the_recording_however_it_is_named(scored, tmp_path, monkeypatch, where, asked_in):
    recording = tmp_path / "here" / "run.zarr"
    if not recording.exists():
        shutil.copytree(scored, recording)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path / asked_in)
    result = run(app, ["analyze", where, "--analysis", "choice-maps"])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in recording.parent.iterdir()) == ["run.choice-maps.nc", "run.zarr"]
    (recording.parent / "run.choice-maps.nc").unlink()


@each_row(
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
