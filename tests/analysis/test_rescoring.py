"""Rescoring equals the accelerator's own scores, and naive float64 loops."""

import json

import dask
import numpy as np
import pytest
import torch
import xarray as xr

import tapstudy
from tapstudy import TAPConfig
from tapstudy.analysis import features as features_module
from tapstudy.analysis.rescoring import rescore
from tapstudy.analysis.teacher_forced import one_torch_thread
from tapstudy.core.schedule import Schedule
from tapstudy.predictors.taylor import TaylorFamily
from tests.analysis.trajectories import make_features, predicted
from tests.conftest import make_tiny_pipe
from tests.recording.runs import calls_of
from tests.reference import distance
from tests.table import each_row

FIELDS = ("proxy_loss", "true_error", "choice", "probe", "residual", "latent_residual", "image")
EXACT = ("choice", "is_full", "distance", "is_distinct")


def assert_same_recording(found, recorded):
    for name in EXACT:
        np.testing.assert_array_equal(found[name].values, recorded[name].values, err_msg=name)
        assert found[name].dtype == recorded[name].dtype
        assert found[name].dims == recorded[name].dims
    for name in ("proxy_loss", "true_error"):
        np.testing.assert_allclose(found[name].values, recorded[name].values, rtol=1e-6, atol=1e-12, err_msg=name)


def test_an_image_of_the_embedded_model(tmp_path):
    """The accelerator chose from these probes; rescoring finds the same choices and losses."""
    config = TAPConfig(interval=3, warmup_steps=2)
    calls = [{"class_labels": [3], "seed": [1], "num_inference_steps": 6}]
    recorded = tapstudy.record(
        tapstudy.load("mnist-dit"), calls, tmp_path / "run", fields=FIELDS, config=config, progress=False
    )
    found = rescore(recorded, config)
    assert_same_recording(found, recorded)
    assert set(found.coords) == set(recorded.coords) - {"depth"}
    assert (found["choice"].values[found["is_full"].values == 0] >= 0).all()


@pytest.mark.parametrize(
    "settings",
    [
        {
            "probe_depth": 1,
            "distance": "l2",
            "granularity": "region",
            "region_size": 2,
            "cooldown_steps": 1,
            "probe_dtype": torch.float16,
        },
        {"distance": "l1", "granularity": "step", "differences": "divided", "basis": "newton", "clip": "zero"},
        {
            "shifts": (0, 0.5, 1.5),
            "orders": (1, 2),
            "full_steps": (0, 1, 4, 7),
            "history_dtype": torch.float16,
            "probe_dtype": torch.bfloat16,
        },
    ],
)
def test_every_option_as_recorded(tmp_path, settings):
    config = TAPConfig(interval=4, warmup_steps=2, **settings)
    recorded = tapstudy.record(
        make_tiny_pipe(), calls_of([(1, 1), (2, 2)], steps=10), tmp_path / "run", fields=FIELDS, config=config,
        depths=(0, 1), progress=False,
    )  # fmt: skip
    assert_same_recording(rescore(recorded, config), recorded)


def test_another_schedule_than_the_recorded_one(tmp_path):
    """With the latent residual, recorded beside the hidden one."""
    asked = TAPConfig(interval=3, warmup_steps=3, residual="latent", orders=(0, 1))
    pipe, calls = make_tiny_pipe(), calls_of([(1, 1)])
    recorded = tapstudy.record(
        pipe, calls, tmp_path / "a", fields=FIELDS, config=TAPConfig(interval=7), progress=False
    )  # fmt: skip
    expected = tapstudy.record(
        pipe, calls, tmp_path / "b", fields=("proxy_loss", "true_error", "choice"), config=asked, progress=False
    )  # fmt: skip
    assert_same_recording(rescore(recorded, asked), expected)


def test_which_residual_a_recording_holds():
    data = make_features().assign_attrs(configuration=json.dumps({"policy": {"config": {"residual": "latent"}}}))
    latent = rescore(data, TAPConfig(residual="latent"))
    xr.testing.assert_identical(latent["true_error"], rescore(make_features(), TAPConfig())["true_error"])
    with pytest.raises(ValueError, match="holds the latent residual only"):
        rescore(data, TAPConfig())


@each_row("kind", ["cosine", "l2", "l1"])
def test_naive_loops(kind):
    data = make_features(samples=1, contexts=0, steps=12)
    config = TAPConfig(interval=4, distance=kind, shifts=(0, 0.5, 3))
    found = rescore(data, config).isel(sample=0)
    full = Schedule(4, 3).steps(12)
    for step in set(range(12)) - set(full):
        k = step - max(a for a in full if a < step)
        for p, label in enumerate(config.family.labels):
            for name, feature, how in (("proxy_loss", "probe", kind), ("true_error", "residual", "l2")):
                values = data[feature].values[0]
                guess = torch.tensor(predicted(values, step, full, label.order, k - label.shift))[None]
                expected = distance(how, guess, torch.tensor(values[step]).double()[None])[0].numpy()
                np.testing.assert_allclose(found[name].values[step, :, p], expected, rtol=1e-6, atol=1e-13)
    assert found["true_error"].isel(step=list(full)).isnull().all()
    assert (found["choice"].isel(step=list(full)) == -1).all()


def test_selected_only_follows_from_the_scores():
    data = make_features(samples=3)
    config = TAPConfig(interval=5, granularity="step")
    scores, small = rescore(data, config).compute(), rescore(data, config, selected_only=True).compute()
    skips = scores["is_full"].values == 0
    choice = scores["choice"].where(scores["choice"] >= 0, 0).astype(int)
    xr.testing.assert_identical(small["choice"], scores["choice"])
    for name, source in (("chosen_proxy_loss", "proxy_loss"), ("chosen_true_error", "true_error")):
        np.testing.assert_array_equal(small[name], scores[source].isel(predictor=choice))
    np.testing.assert_array_equal(small["best_true_error"], scores["true_error"].min("predictor"))
    best = small["best"].where(small["best"] >= 0, 0).astype(int)
    np.testing.assert_array_equal(scores["true_error"].isel(predictor=best), small["best_true_error"])
    np.testing.assert_allclose(small["regret"], small["chosen_true_error"] - small["best_true_error"])
    assert (small["regret"].values[skips] >= 0).all()
    for name in ("proxy_loss", "true_error"):
        np.testing.assert_allclose(small[f"mean_{name}"], scores[name].mean("token"), rtol=1e-6)


def test_long_trajectories_are_cut_into_runs_of_steps(monkeypatch):
    data = make_features().chunk(sample=1, context=1, step=3)
    whole = rescore(data, TAPConfig(interval=4)).compute()
    monkeypatch.setattr(features_module, "BLOCK_BYTES", 4 * 6 * 10 * 4)  # four steps of 6 tokens with 5 + 5 channels
    parts = rescore(data, TAPConfig(interval=4))
    assert parts["choice"].data.numblocks == (2, 2, 4, 1)
    xr.testing.assert_identical(parts.compute(), whole)


def test_half_precision_any_leading_dims_and_laziness():
    half = make_features(contexts=0, dtype=np.float16)
    upcast = half.astype(np.float32)
    for name in ("probe", "residual"):
        upcast[name] = half[name].astype(np.float32)

    def refuse(*_args, **_kwargs):
        raise AssertionError("computed while it was laid out")

    with dask.config.set(scheduler=refuse):
        lazy = rescore(half.chunk(sample=1), TAPConfig(interval=4))
    xr.testing.assert_identical(lazy.compute(), rescore(upcast, TAPConfig(interval=4)).compute())
    one = rescore(half.isel(sample=1, drop=True), TAPConfig(interval=4))
    np.testing.assert_array_equal(one["true_error"], lazy["true_error"].isel(sample=1))
    assert one["is_full"].dims == ("step",)


def test_another_family_and_attributes():
    data = make_features()
    found = rescore(data, family=TaylorFamily(orders=(1,), shifts=(0.25, 1)))
    assert found["order"].values.tolist() == [1, 1]
    assert found["shift"].values.tolist() == [0.25, 1]
    assert "shifts=(0.25, 1)" in json.loads(found.attrs["rescoring"])["family"]
    assert all({"long_name", "units"} <= set(found[name].attrs) for name in ("choice", "is_full", "true_error"))


def test_torch_threads_are_given_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_torch_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_what_cannot_be_rescored():
    data = make_features(depths=2)
    with pytest.raises(ValueError, match=r"no probe of block 3, the recording has \[0, 1\]"):
        rescore(data, TAPConfig(probe_depth=3))
    with pytest.raises(ValueError, match="one choice per batch"):
        rescore(data, TAPConfig(granularity="global"))
    with pytest.raises(ValueError, match="regions need row and col"):
        rescore(data.drop_vars("row"), TAPConfig(granularity="region"))
    with pytest.raises(ValueError, match=r"every step of the trajectory, 0\.\.2"):
        rescore(data.isel(step=[0, 2, 4]))
    with pytest.raises(ValueError, match="'residual'"):
        rescore(data.drop_vars("residual"))
    with pytest.raises(ValueError, match="does not tell its depths"):
        rescore(make_features(), {"probe_depth": 1})
