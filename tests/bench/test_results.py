"""Files that are made once, for one key, whole or not at all."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import xarray as xr

from tapstudy.bench.results import Results, short_hash


class Maker:
    """Counts how often it is asked."""

    def __init__(self, value):
        self.value, self.calls = value, 0

    def __call__(self):
        self.calls += 1
        return self.value


DATASET = xr.Dataset(
    {"x": ("sample", [1.0, 2.0]), "half": ("sample", np.array([0.5, 1.5], "f2")), "mask": ("sample", ["F.", "FF"])},
    attrs={"setting": "tap"},
)


@pytest.fixture
def results(tmp_path):
    return Results(tmp_path / "kept")


def test_a_dataset_is_made_once(results):
    make = Maker(DATASET)
    first, second = (results.dataset("a/b", {"n": (1, 2)}, make) for _ in range(2))
    assert make.calls == 1
    xr.testing.assert_identical(first, second)
    assert first["mask"].values.tolist() == ["F.", "FF"]
    assert first.attrs == {"setting": "tap"}
    assert not list(results.folder.rglob("*.partial"))


def test_another_key_is_another_result(results, caplog):
    make = Maker(DATASET)
    results.dataset("b", {"weights": "old"}, make)
    results.dataset("b", {"weights": "new"}, make)
    assert make.calls == 2
    assert "was made with other settings or weights: computing it again" in caplog.messages[0]


@pytest.mark.parametrize("damage", ["cut", "changed", "foreign"])
def test_damage_is_noticed(results, damage, caplog):
    make = Maker(DATASET)
    results.dataset("b", 1, make)
    path = results.folder / "b.nc"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:2000])
    else:
        with xr.open_dataset(path) as file:
            other = file.load()
        if damage == "changed":
            other["mask"][1] = ".."
        else:
            del other.attrs["checksum"]
        path.unlink()
        other.to_netcdf(path)
    xr.testing.assert_identical(results.dataset("b", 1, make), results.dataset("b", 1, make))
    assert make.calls == 2
    assert len(caplog.records) == 1


def test_nothing_is_left_of_a_failure(results):
    with pytest.raises(ZeroDivisionError):
        results.dataset("b", 1, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        results.value("v", 1, lambda: 1 / 0)
    assert results.read("b", 1) is None
    assert results.value("v", 1, lambda: 3) == 3


def test_a_value_is_made_once(results):
    make = Maker([1, (2, 3)])
    assert [results.value("v", None, make) for _ in range(2)] == [[1, [2, 3]]] * 2
    assert make.calls == 1
    results.value("v", "other", make)
    (results.folder / "v.json").write_text("{")
    assert results.value("v", "other", make) == [1, [2, 3]]
    assert make.calls == 3


def test_a_folder_belongs_to_one_plan(results):
    results.belongs_to({"seeds": (1, 2)})
    results.belongs_to({"seeds": [1, 2]})
    assert json.loads((results.folder / "plan.json").read_text()) == {"seeds": [1, 2]}
    with pytest.raises(ValueError, match="results of another plan, or of other weights"):
        results.belongs_to({"seeds": [1]})


def test_hashes_tell_values_apart():
    assert short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1})
    assert short_hash([1, 2]) != short_hash([1, 3])
    assert len(short_hash("x")) == 16


def test_threads_write_and_read_at_once(tmp_path):
    """With a library that is not safe for threads, as netCDF4, this kills the process."""
    results = Results(tmp_path)

    def there_and_back(i):
        results.write(str(i), i, xr.Dataset({"value": ("x", np.full(10, i)), "text": ("x", ["one"] * 10)}))
        return int(results.read(str(i), i)["value"][0])

    with ThreadPoolExecutor(8) as threads:
        assert [*threads.map(there_and_back, range(40))] == [*range(40)]
