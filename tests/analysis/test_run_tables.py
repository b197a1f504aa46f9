"""Hand-made tables of runs."""

import numpy as np
import pytest
import xarray as xr

from tapstudy.analysis.claims.report import verdict_table
from tapstudy.analysis.run_tables import (
    at_fewest_passes,
    cost_and_quality,
    fixed_quality,
    frontier,
    gains,
    published_table,
    rank_by_depth,
)
from tapstudy.analysis.study import load_study, load_table, save_study, save_table


def table(**rows):
    """`psnr` by run; every full pass costs 10 and an image in the second half is misjudged."""
    names = [name.replace("_", " ").replace("is", "=") for name in rows]
    psnr = np.array(list(rows.values()), dtype=float)
    passes = np.array([50 if name == "reference" else 56 / int(name.split("=")[1].split()[0]) for name in names])
    passes = passes[:, None].repeat(psnr.shape[1], axis=1)
    correct = np.broadcast_to(np.arange(psnr.shape[1]) < psnr.shape[1] / 2, psnr.shape).astype(float)
    dims = ("cell", "sample")
    return xr.Dataset(
        {"psnr": (dims, psnr), "correct": (dims, correct), "full_passes": (dims, passes), "flops": (dims, 10 * passes)},
        coords={"cell": names, "seed": ("sample", range(psnr.shape[1])), "label": ("sample", range(psnr.shape[1]))},
    )


RUNS = {
    "reference": [np.inf] * 4,
    "tap_Nis8": [10, 20, 30, 40],
    "tap_Nis4": [20, 30, 40, 50],
    "oracle_Nis8": [12, 22, np.nan, np.nan],
    "order0_Nis8": [9, 19, 29, 39],
    "tap_Nis8_l2": [11, 22, 33, 44],
}


def test_frontier_is_over_the_images_that_all_methods_have():
    found = frontier(table(**RUNS))
    assert found.attrs["images"] == 2
    assert found["run"].values.tolist() == ["reference", "order0 N=8", "tap N=4", "tap N=8", "oracle N=8"]
    assert found["psnr"].sel(bound="mean").values.tolist() == [np.inf, 14, 25, 15, 17]
    assert found["accuracy"].sel(bound="mean").values.tolist() == [1] * 5  # the images of the first half
    assert found["interval"].values.tolist() == [1, 8, 4, 8, 8]
    alone = frontier(table(**RUNS), ("tap",))
    assert alone.attrs["images"] == 4
    assert alone["psnr"].sel(bound="mean", run="tap N=8").item() == 25
    assert alone["accuracy"].sel(bound="mean").values.tolist() == [0.5] * 3


def test_frontier_gives_the_oracle_the_cost_of_tap():
    runs = table(**RUNS)
    runs["flops"].loc[{"cell": "oracle N=8"}] = 1e9
    found = frontier(runs)["flops"]
    assert found.sel(run="oracle N=8").item() == found.sel(run="tap N=8").item() == 70
    assert found.sel(run="reference").item() == 500


def test_frontier_needs_runs_and_images():
    with pytest.raises(ValueError, match="no run of"):
        frontier(table(**RUNS), ("magic",))
    with pytest.raises(ValueError, match="no two images"):
        frontier(table(**RUNS | {"oracle_Nis8": [1, np.nan, np.nan, np.nan]}))


def test_at_fewest_passes():
    """Best first; rows that failed, and the reference, are left out."""
    names = ["reference", "tap N=4", "tap N=8", "fewer N=8", "broken N=8"]
    mean = np.array([np.inf, 40, 30, 35, np.nan])
    found = at_fewest_passes(
        xr.Dataset(
            {
                "psnr_interval": (("cell", "bound"), mean[:, None] + np.array([0, -1, 1])),
                "seconds": (("cell", "sample"), np.array([[10.0, 10], [4, 4], [2, 2], [1, 3], [np.nan, np.nan]])),
                "flops": (("cell", "sample"), np.array([[12.0, 12], [6, 6], [4, 4], [3, 3], [np.nan, np.nan]])),
            },
            coords={
                "cell": names, "bound": ["mean", "low", "high"], "passes": ("cell", [50, 14, 8, 8, 8]),
                "method": ("cell", [name.split()[0] for name in names]), "schedule": ("cell", ["S(N,3)"] * 5),
            },
        )
    )  # fmt: skip
    assert found["cell"].values.tolist() == ["fewer N=8", "tap N=8"]
    assert found["time_ratio"].values.tolist() == [5, 5]
    assert found["flops_ratio"].values.tolist() == [4, 3]
    assert found["as_published"].values.tolist() == [False, True]
    assert found.attrs["images"] == 2


def test_at_fewest_passes_of_every_method_the_best():
    """The best schedule of the best methods alone, and TAP as published wherever it is."""
    methods, schedules = ["reference", "a", "tap", "a", "b", "tap"], ["", "even", "even", "own", "own", "S(N,3)"]
    mean = np.array([np.inf, 50, 40, 30, 20, 10])
    table = xr.Dataset(
        {
            "psnr_interval": (("cell", "bound"), mean[:, None] + np.array([0, -1, 1])),
            "seconds": (("cell", "sample"), np.ones((6, 2))),
            "flops": (("cell", "sample"), np.ones((6, 2))),
        },
        coords={
            "cell": ["reference", *"12345"], "passes": ("cell", [50, 8, 8, 8, 8, 8]), "method": ("cell", methods),
            "schedule": ("cell", schedules), "bound": ["mean", "low", "high"], "chosen": ("cell", [False] * 6),
        },
    )  # fmt: skip
    assert at_fewest_passes(table, best=2)["cell"].values.tolist() == ["1", "2", "5"]
    assert at_fewest_passes(table, best=9)["cell"].values.tolist() == ["1", "2", "4", "5"]
    assert at_fewest_passes(table)["cell"].values.tolist() == list("12345")
    table["chosen"][3] = True  # a's own schedule, on other images
    assert at_fewest_passes(table, best=2)["cell"].values.tolist() == ["2", "3", "5"]


def test_gains_are_paired_and_on_common_images():
    found = gains(table(**RUNS), {"L2": "tap N=8 l2", "oracle": "oracle N=8", "absent": "x"}, "tap N=8")
    assert found["run"].values.tolist() == ["L2", "oracle"]
    assert found["gain"].sel(bound="mean").values.tolist() == [2.5, 2]
    assert found["images"].values.tolist() == [4, 2]
    of_image = found["gain_of_image"]
    assert of_image.mean("sample").values.tolist() == [2.5, 2]
    assert of_image.notnull().sum("sample").values.tolist() == [4, 2]  # those that both have
    assert found["gain"].sel(run="oracle", bound="low").item() == 2  # the same for both images: no scatter
    own = gains(table(**RUNS), {"a": ("tap N=8 l2", "tap N=8"), "b": ("tap N=8", "tap N=8 l2"), "c": ("x", "tap N=8")})
    assert own["gain"].sel(bound="mean").values.tolist() == [2.5, -2.5]
    with pytest.raises(ValueError, match=r"needs two runs of one of .*'tap N=2'"):
        gains(table(**RUNS), {"L2": "tap N=8 l2"}, "tap N=2")


def test_cost_and_quality():
    found = cost_and_quality(table(**RUNS), ["tap N=8", "tap N=4", "tap N=3"])
    assert found["run"].values.tolist() == ["tap N=8", "tap N=4"]
    assert found["flops"].values.tolist() == [70, 140]
    assert found["psnr"].sel(bound="mean").values.tolist() == [25, 35]


def test_fixed_quality_reads_orders_and_shifts_off_the_methods():
    runs = table(a_Nis8=[1, 2, 3], b_Nis8=[2, 3, np.nan], c_Nis8=[5, 6, 7])
    runs = runs.assign_coords(method=("cell", ["fixed0", "fixed2-3", "tap"]))
    fixed, others, images = fixed_quality(runs)
    assert images == 2
    assert fixed["order"].values.tolist() == [0, 2]
    assert fixed["shift"].values.tolist() == [0, 3]
    assert fixed.sel(bound="mean").values.tolist() == [1.5, 2.5]
    assert {name: float(values.sel(bound="mean")) for name, values in others.items()} == {"tap": 5.5}


def ranking():
    return xr.Dataset(
        {
            "spearman": (("cell", "sample"), [[0.5, 0.7], [0.1, 0.3], [0.8, 0.8], [0.4, 0.4], [0, 0]]),
            "spearman_at_distance": (("ranker", "sample", "distance"), [[[1, 0.5], [0.5, 0]], [[1, 1], [1, 1]]]),
        },
        coords={
            "cell": ["tap N=8", "tap N=8 depth=4", "tap N=8 depth=1", "shuffled N=8", "tap N=4"],
            "distance": [1, 2],
            "ranker": ["tap N=8", "table N=8"],
        },
    )


def test_rank_by_depth_sorts_the_depths():
    found = rank_by_depth(ranking())
    assert found["depth"].values.tolist() == [0, 1, 4]
    np.testing.assert_allclose(found["spearman"].sel(bound="mean"), [0.6, 0.8, 0.2])
    assert found["control"].values.tolist() == ["shuffled"]
    assert found["of_control"].sel(bound="mean").values.tolist() == [0.4]
    assert found["at_distance"].sel(bound="mean").values.tolist() == [[0.75, 0.25], [1, 1]]


class Evidence:
    def __init__(self):
        self.quality, self.ranking, self.chosen = table(**RUNS), ranking(), {"mask": "F..F"}
        self.untrained = xr.Dataset({"spearman": ("sample", [1.0, 2.0])})
        self.tokens = xr.Dataset({"speed": ("sample", [1.0, 2.0])}, coords={"label": ("sample", np.array(["a", "b"]))})
        self.propagation = xr.Dataset(
            {"deviation": ("policy", np.float32([1, np.nan]))}, coords={"policy": ["a", "bc"]}
        )


def test_a_study_comes_back_as_it_was(tmp_path):
    evidence = Evidence()
    save_study(evidence, tmp_path / "new")
    save_study(evidence, tmp_path / "new")  # over the old one
    found = load_study(tmp_path / "new")
    assert found.pop("chosen") == {"mask": "F..F"}
    for name, loaded in found.items():
        xr.testing.assert_equal(loaded, getattr(evidence, name))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "chosen.json", "propagation.nc", "quality.nc", "ranking.nc", "tokens.nc", "untrained.nc",
    ]  # fmt: skip


def test_a_table_keeps_its_attributes(tmp_path):
    made = ranking().assign_attrs(model="m")
    made["spearman"].attrs = {"units": "1"}
    save_table(made, tmp_path, "t")
    found = load_table(tmp_path, "t")
    assert found.attrs == {"model": "m"}
    assert found["spearman"].attrs == {"units": "1"}


def test_missing_studies_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no study in .*chosen\.json"):
        load_study(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no table .*quality\.nc"):
        load_table(tmp_path, "quality")


class Thing:
    def __init__(self, **values):
        self.__dict__.update(values)


def test_verdicts_lie_on_the_claimed_side():
    def finding(interval, *, above, threshold=0.0):
        part = Thing(name="p", interval=interval, threshold=threshold, above=above, unit="dB")
        return Thing(claim=Thing(name="H", statement="s"), verdict="holds", adjusted=0.01, decisive=part)

    above = finding((2, 1, 3), above=True)
    below = finding((-3, -4, -1), above=False, threshold=1.0)
    certain = finding((1, 1, 1), above=True)
    found = verdict_table([above, below, certain])
    np.testing.assert_allclose(found["margin"], [[2, 1, 3], [4, 2, 5], [1, 1, 1]])
    np.testing.assert_allclose(found["value"][1], [-3, -4, -1])


def test_published_numbers(tmp_path):
    from tests.test_architecture import ROOT

    found = published_table(ROOT.parent / "data" / "published" / "tap.csv")
    flux = found.isel(row=(found["model"] == "FLUX.1-dev") & (found["metric"] == "PSNR"))
    assert dict(zip(flux["name"].values, flux["value"].values, strict=True))["TAP N=8"] == 16.11
    assert all("2603.03792" in source for source in found["source"].values)
    (tmp_path / "bad.csv").write_text("model,value\na,1\n")
    with pytest.raises(ValueError, match="lacks the columns"):
        published_table(tmp_path / "bad.csv")
