"""What was selected of a recording can be written again, by xarray and by our writer, and read back."""

import copy
import pickle

import numpy as np
import pytest
import xarray as xr

import tapstudy
from tapstudy.recording import schema
from tapstudy.recording.export import to_netcdf, to_zarr
from tests.conftest import make_tiny_pipe
from tests.recording.runs import CONFIG, calls_of
from tests.table import each_row

FIELDS = ("true_error", "choice", "image")
SELECTIONS = {
    "all": lambda run: run,
    "one sample": lambda run: run.isel(sample=1),
    "samples reordered": lambda run: run.isel(sample=[2, 0]),
    "samples by a mask": lambda run: run.isel(sample=np.array([True, False, True])),
    "one step": lambda run: run.isel(step=3),
    "some steps": lambda run: run.isel(step=slice(1, 6, 2)),
    "steps reordered": lambda run: run.isel(step=[5, 1, 4]),
    "steps by a mask": lambda run: run.isel(step=(run["is_full"][0, 0] == 0).values),
    "one context": lambda run: run.sel(context="cond"),
    "tokens and predictors": lambda run: run.isel(token=slice(2, 9), predictor=[4, 0], context=[1]),
    "one value": lambda run: run.isel(sample=0, context=0, step=4, token=3, predictor=2),
    "a seed": lambda run: run.isel(sample=(run["seed"] == 2**64 - 1).values),
    "one variable": lambda run: run[["true_error"]],
}
FEW = ("all", "samples reordered", "steps by a mask", "one value")  # where a chunk holds all steps


CALLS = calls_of([(3, 2**63 + 1), (1, 2**64 - 1)], [(4, 7)])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A chunk per sample."""
    path = tmp_path_factory.mktemp("copies") / "run.zarr"
    tapstudy.record(make_tiny_pipe(), CALLS, path, fields=FIELDS, config=CONFIG, progress=False)
    return path


@pytest.fixture(scope="module")
def in_chunks(tmp_path_factory):
    path = tmp_path_factory.mktemp("copies") / "run.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "CHUNK_BYTES", 6000)
        tapstudy.record(make_tiny_pipe(), CALLS, path, fields=FIELDS, config=CONFIG, progress=False)
    assert len([path for path in (path / "true_error" / "c" / "0").rglob("*") if path.is_file()]) > 2
    return path


@pytest.fixture
def run(in_chunks, monkeypatch):
    """Several chunks along the steps, in copies too."""
    monkeypatch.setattr(schema, "CHUNK_BYTES", 6000)
    return in_chunks


def copied(path, tmp_path, what):
    selected = SELECTIONS[what](tapstudy.open_recording(path))
    out = to_zarr(selected, tmp_path / f"{what}.zarr")
    back = tapstudy.open_recording(out)
    xr.testing.assert_identical(back.load(), selected.load())
    assert all(back[name].dtype == selected[name].dtype for name in selected.variables)


@each_row("what", SELECTIONS)
def test_our_writer(run, tmp_path, what):
    copied(run, tmp_path, what)


@each_row("what", FEW)
def test_our_writer_of_a_chunk_per_sample(plain, tmp_path, what):
    copied(plain, tmp_path, what)


def test_our_writer_twice(run, tmp_path):
    once = to_zarr(run, tmp_path / "once.zarr")
    twice = to_zarr(once, tmp_path / "twice.zarr")
    xr.testing.assert_identical(tapstudy.open_recording(twice).load(), tapstudy.open_recording(run).load())


def test_nothing_selected(run, tmp_path):
    with pytest.raises(tapstudy.RecordingError, match="nothing along token: there is nothing to write"):
        to_zarr(tapstudy.open_recording(run).isel(token=[]), tmp_path / "copy.zarr")


@pytest.mark.parametrize(
    ("of", "what", "zarr_format"),
    [("run", "one sample", 2), ("plain", "samples reordered", 3), ("run", "steps by a mask", 3)],
)
@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_the_writer_of_xarray(request, tmp_path, of, what, zarr_format):
    selected = SELECTIONS[what](tapstudy.open_recording(request.getfixturevalue(of)))
    whole = selected.chunk(dict.fromkeys(selected.sizes, -1))  # it takes only equal chunks, whatever they hold
    whole.to_zarr(tmp_path / "copy.zarr", zarr_format=zarr_format)
    with xr.open_zarr(tmp_path / "copy.zarr") as back:
        for name, values in selected.variables.items():
            np.testing.assert_array_equal(np.asarray(back[name].values.astype(values.dtype)), values.values)
        assert back["seed"].dtype == np.uint64
    if zarr_format == 3:
        with pytest.raises(tapstudy.RecordingError, match="a copy written by xarray itself: open it with xarray"):
            tapstudy.open_recording(tmp_path / "copy.zarr")


@pytest.mark.filterwarnings("ignore:Consolidated metadata")
def test_chunks_are_no_obstacle(tmp_path):
    path = tmp_path / "run.zarr"
    run = tapstudy.record(make_tiny_pipe(), calls_of([(1, 1), (2, 2)]), path, config=CONFIG, progress=False)
    for number, changed in enumerate((run, run.isel(sample=0), run.isel(step=[5, 1]), run.chunk(step=5, sample=2))):
        changed.to_zarr(tmp_path / f"{number}.zarr")
        with xr.open_zarr(tmp_path / f"{number}.zarr") as back:
            np.testing.assert_array_equal(back["true_error"], changed["true_error"])
    run.to_zarr(tmp_path / "0.zarr", append_dim="sample")
    with xr.open_zarr(tmp_path / "0.zarr") as back:
        assert back["seed"].values.tolist() == [1, 2, 1, 2]


def test_copies_in_memory_and_netcdf(run, tmp_path):
    opened = tapstudy.open_recording(run)
    for other in (pickle.loads(pickle.dumps(opened)), copy.deepcopy(opened)):
        xr.testing.assert_identical(other.load(), opened.load())
    with xr.open_dataset(to_netcdf(run, tmp_path / "run.nc"), engine="h5netcdf") as back:
        assert back["seed"].values.tolist() == [2**63 + 1, 2**64 - 1, 7]


def test_an_excerpt_is_no_recording_to_go_on_with(run, tmp_path):
    out = to_zarr(tapstudy.open_recording(run).isel(sample=[1]), tmp_path / "copy.zarr")
    with pytest.raises(tapstudy.RecordingError, match="a part of a recording, which cannot be resumed"):
        tapstudy.record(make_tiny_pipe(), CALLS, out, fields=FIELDS, config=CONFIG, progress=False)
    assert tapstudy.open_recording(out)["seed"].values.tolist() == [2**64 - 1]


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "thesis.txt").write_text("draft")
    for out in (tmp_path, tmp_path / "thesis.txt", run):
        with pytest.raises(tapstudy.RecordingError, match="there is something at"):
            to_zarr(run, out)
    with pytest.raises(tapstudy.RecordingError, match="the dataset has no schema_version"):
        to_zarr(xr.Dataset({"a": ("x", [1, 2])}), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
