import dask
import numpy as np
import pytest
import xarray as xr
from dask.base import get_scheduler
from dask.threaded import get as threaded
from distributed import Client, LocalCluster, get_worker

from tapstudy.analysis.cluster import scheduler
from tapstudy.analysis.result import means, open_result, shares, summary_rows
from tapstudy.netcdf import write_netcdf
from tests.table import each_row


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0") as made:
        yield made


def where():
    """The name of the worker that runs this, or None."""
    try:
        return get_worker().name
    except ValueError:
        return None


def test_threads_of_this_process_by_default(cluster):
    with scheduler() as client:
        assert client is None
        assert dask.delayed(where)().compute() is None
    with Client(cluster, set_as_default=True), scheduler():
        assert get_scheduler() is threaded
        assert dask.delayed(where)().compute() is None


def test_workers_compute_inside_the_block_only(cluster):
    with scheduler(cluster.scheduler_address) as client:
        assert isinstance(client, Client)
        names = dask.compute([dask.delayed(where)(dask_key_name=f"where-{i}") for i in range(8)])[0]
        assert set(names) <= {0, 1}
    assert client.status == "closed"
    assert dask.delayed(where)().compute(scheduler=None) is None


@each_row("address", ["tcp://127.0.0.1:1", "nonsense://x"])
def test_nobody_there(address):
    message = r"no dask scheduler answers at '.*start one with `dask scheduler`"
    with pytest.raises(ConnectionError, match=message), scheduler(address, timeout=0.5):
        pass
    assert get_scheduler() is None  # nothing is left behind


def test_no_workers():
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as empty,
        pytest.raises(ConnectionError, match="has no workers: start some"),
        scheduler(empty.scheduler_address, timeout=0.5),
    ):
        pass


@pytest.fixture
def result():
    values = np.arange(12.0, dtype=np.float16).reshape(3, 4)
    return xr.Dataset(
        {
            "value": (("sample", "token"), values, {"units": "dB", "long_name": "a value"}),
            "mask": ("sample", np.array(["F.", "FF", ""], dtype=np.dtypes.StringDType())),
            "share": ((), 0.25),
            "nothing": ("sample", np.full(3, np.nan)),
        },
        coords={"label": ("sample", np.array(["one", "two", "é"], dtype=np.dtypes.StringDType()))},
        attrs={"model": np.str_("é"), "parts": ["one", "two"], "count": 3},
    ).chunk(sample=1)


@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_results_are_written_and_read_back(result, cluster, tmp_path, where):
    out = tmp_path / "new" / "result.nc"
    with scheduler(None if where == "threads" else cluster.scheduler_address):
        assert write_netcdf(result, out) == out
    with open_result(out) as found:
        assert found["value"].dtype == np.float32
        np.testing.assert_array_equal(found["value"], result["value"])
        assert found["value"].attrs == result["value"].attrs
        assert found["mask"].values.tolist() == ["F.", "FF", ""]
        assert found["label"].values.tolist() == ["one", "two", "é"]
        assert (found.attrs["model"], found.attrs["parts"], found.attrs["count"]) == ("é", ["one", "two"], 3)
    assert [path.name for path in out.parent.iterdir()] == ["result.nc"]


def test_a_failed_write_leaves_the_old_file(result, tmp_path):
    out = write_netcdf(result, tmp_path / "result.nc")
    before = out.read_bytes()

    def fail(block):
        raise OSError("no such chunk")

    broken = result.assign(value=result["value"].copy(data=result["value"].data.map_blocks(fail, dtype=np.float16)))
    with pytest.raises(OSError, match="no such chunk"):
        write_netcdf(broken, out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["result.nc"]


def test_summary_by_hand(result):
    rows = {name: (about, text, units) for name, about, text, units in summary_rows(means(result, "value", "nothing"))}
    assert set(rows) == {"value", "nothing"}
    about, text, units = rows["value"]
    assert (about, units) == ("a value", "dB")
    assert text.startswith("5.5 [1.5, 9.5]")  # means of the images: 1.5, 5.5, 9.5
    assert rows["nothing"][1] == "no value"


def test_shares_by_hand():
    """Codes outside the labels, such as the -1 of full steps, count for nothing; an image without any has no share."""
    codes = xr.DataArray([[[0, 1], [1, 1]], [[-1, -1], [2, 0]], [[-1, -1], [-1, -1]]], dims=("sample", "step", "token"))
    found = shares(codes, {0: "zero", 1: "one", 2: "two"}, dim="what", long_name="share")
    np.testing.assert_array_equal(found, [[0.25, 0.75, 0], [0.5, 0, 0.5], [np.nan] * 3])
    rows = summary_rows(xr.Dataset({"part": found}))
    assert [row[0] for row in rows] == ["part, zero", "part, one", "part, two"]
    assert rows[1][2].startswith("0.375 [")
    assert shares(codes[0], {1: "one"}, dim="what", long_name="share").values.tolist() == [1]
