"""Many settings at once equal each of them alone."""

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from tapstudy import TAPConfig
from tapstudy.analysis import features as features_module
from tapstudy.analysis.ablation import ablate, best_fixed_elsewhere, grid
from tapstudy.analysis.rescoring import rescore
from tests.analysis.trajectories import make_features

SETTINGS = {
    "default": TAPConfig(interval=4),
    "deep": TAPConfig(interval=4, probe_depth=1, distance="l1"),
    "fine": TAPConfig(interval=4, shifts=(0, 0.5, 1), orders=(0, 1), distance="l2"),
    "regions": TAPConfig(interval=6, granularity="region", region_size=2),
    "latent": TAPConfig(full_steps=(0, 3, 9), residual="latent", granularity="step"),
}


def test_every_setting_equals_rescoring():
    data = make_features(samples=3, depths=2)
    found = ablate(data, SETTINGS).compute()
    for name, config in SETTINGS.items():
        one, scores = found.sel(setting=name), rescore(data, config)
        small = rescore(data, config, selected_only=True)
        over = ["context", "step", "token"]
        for metric, source in (("true_error", "chosen_true_error"), ("oracle_true_error", "best_true_error")):
            np.testing.assert_allclose(one[metric], small[source].mean(over), rtol=1e-5)
        np.testing.assert_allclose(one["regret"], small["regret"].mean(over), rtol=1e-4)
        distinct = scores["true_error"].where(scores["is_distinct"] == 1)
        np.testing.assert_allclose(one["random_true_error"], distinct.mean("predictor").mean(over), rtol=1e-5)
        skips = small.isel(step=(small["is_full"][0, 0] == 0).values)
        np.testing.assert_allclose(one["top1"], (skips["choice"] == skips["best"]).mean(over))
        fixed = one["fixed_true_error"]
        kept = fixed.isel(predictor=fixed.notnull().all("sample").values)
        np.testing.assert_allclose(kept, scores["true_error"].mean(over), rtol=1e-5)
        assert kept["order"].values.tolist() == [label.order for label in config.family.labels]
        chance = one["random_true_error"] - one["oracle_true_error"]
        np.testing.assert_allclose(one["normalised_regret"], one["regret"] / chance)


def test_runs_of_steps_add_up(monkeypatch):
    data = make_features(samples=1, depths=2)
    whole = ablate(data, SETTINGS).compute()
    monkeypatch.setattr(features_module, "BLOCK_BYTES", 3 * 6 * 18 * 4)
    xr.testing.assert_allclose(ablate(data, SETTINGS).compute(), whole)


def test_every_chunk_is_read_once():
    data = make_features(samples=2)
    reads = []

    def read(block_info=None):
        where = block_info[None]["chunk-location"]
        reads.append(where)
        return data["probe"].values[where[0] : where[0] + 1, where[1] : where[1] + 1]

    shape = data["probe"].shape
    probe = da.map_blocks(read, chunks=((1, 1), (1, 1), *((n,) for n in shape[2:])), dtype=np.float32,
                          meta=np.empty((0,) * 5, np.float32))  # fmt: skip
    lazy = data.assign(probe=(data["probe"].dims, probe))
    ablate(lazy, grid(interval=(3, 4, 5), distance=("cosine", "l2"))).compute()
    assert sorted(reads) == [(i, j, 0, 0, 0) for i in range(2) for j in range(2)]


def test_grid_names_and_coordinates():
    settings = grid(orders=((0, 1),), interval=(4, 5), shifts=((0, 1), (0, 0.5)), full_steps=(None, (0, 2)))
    assert list(settings)[1] == "orders=0,1 interval=4 shifts=0,1 full_steps=0,2"
    assert settings["orders=0,1 interval=5 shifts=0,0.5 full_steps=None"] == {
        "orders": (0, 1), "interval": 5, "shifts": (0, 0.5), "full_steps": None
    }  # fmt: skip
    found = ablate(make_features(), settings)
    assert found["interval"].values.tolist() == [4] * 4 + [5] * 4
    assert found["shifts"].values.tolist()[:3] == ["0,1", "0,1", "0,0.5"]
    assert found["full_passes"].values.tolist()[:2] == [5, 2]
    assert str(found["mask"].values[1]) == "F.F..........."
    assert "distance" not in found.coords
    with pytest.raises(TypeError, match="did you mean 'interval'"):
        grid(intervals=(4, 5))


def test_best_fixed_is_chosen_elsewhere():
    """Predictor 0 is best for the images of seed 0, predictor 1 for those of seed 1: each gets the other's."""
    errors = xr.DataArray([[1.0, 5, np.nan], [1, 6, np.nan], [7, 2, np.nan]], dims=("sample", "predictor"))
    seed = xr.DataArray([0, 0, 1], dims="sample")
    assert best_fixed_elsewhere(errors, seed).values.tolist() == [5, 6, 7]
    # without seeds the two other images choose: sums (8, 8), a tie, then (8, 7), then (2, 11)
    assert best_fixed_elsewhere(errors).values.tolist() == [1, 6, 7]
    assert best_fixed_elsewhere(errors[:1]).isnull().all()


def test_what_cannot_be_ablated():
    with pytest.raises(ValueError, match="at least one setting"):
        ablate(make_features(), {})
    with pytest.raises(ValueError, match="setting '0' skips none of the 14 steps"):
        ablate(make_features(), [TAPConfig(interval=1)])
