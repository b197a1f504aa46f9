"""A recording is rescored with its own schedule and settings, unless others are asked for."""

import json

import numpy as np
import pytest
import xarray as xr

import tapstudy
from tapstudy import TAPConfig
from tapstudy.analysis.ablation import ablate, grid
from tapstudy.analysis.own_settings import settle
from tapstudy.analysis.rescoring import rescore
from tapstudy.analysis.stored_probes import stored_probes
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.analysis.trajectories import make_features
from tests.conftest import make_tiny_pipe
from tests.recording.runs import calls_of

FIELDS = ("true_error", "choice", "probe", "residual")
CALLS = calls_of([(1, 1), (2, 2)], steps=12)
CONFIGS = {
    "cool-down": TAPConfig(interval=5, warmup_steps=2, cooldown_steps=2, orders=(0, 1), shifts=(0, 0.5)),
    "explicit": TAPConfig(full_steps=(0, 1, 3, 8), distance="l1"),
}


@pytest.fixture(scope="module", params=CONFIGS)
def recorded(request, tmp_path_factory):
    config = CONFIGS[request.param]
    path = tmp_path_factory.mktemp("own") / "run"
    return config, tapstudy.record(make_tiny_pipe(), CALLS, path, fields=FIELDS, config=config, progress=False).load()


def mask_of(recording):
    assert (recording["is_full"] == recording["is_full"][0, 0]).all()
    return "".join("F" if full else "." for full in recording["is_full"][0, 0].values)


def told(dataset):
    return json.loads(dataset.attrs["rescoring"])


def test_its_own_settings_and_changes_that_keep_the_rest(recorded):
    config, run = recorded
    found = rescore(run)
    np.testing.assert_array_equal(found["is_full"], run["is_full"])
    np.testing.assert_array_equal(found["choice"], run["choice"])
    np.testing.assert_allclose(found["true_error"], run["true_error"], rtol=1e-5)
    assert told(found)["schedule"] == "the recording's own"
    assert told(found)["mask"] == mask_of(run)
    assert told(found)["config"] == json.loads(json.dumps(config.to_dict()))
    changed = rescore(run, {"distance": "l2", "orders": (0, 1)})
    assert changed["order"].max() == 1
    assert (told(changed)["mask"], told(changed)["schedule"]) == (mask_of(run), "the recording's own")
    assert told(changed)["config"] == json.loads(json.dumps({**config.to_dict(), "distance": "l2", "orders": (0, 1)}))


def test_another_schedule_when_asked(recorded):
    config, run = recorded
    found = rescore(run, {"interval": 6})
    assert told(found)["schedule"] == "as asked"
    assert mask_of(found) == mask_of(rescore(run, TAPConfig(interval=6, warmup_steps=config.warmup_steps,
                                                            cooldown_steps=config.cooldown_steps)))  # fmt: skip
    explicit = rescore(run, {"full_steps": (0, 2, 7), "cooldown_steps": 0})
    assert mask_of(explicit) == "F.F....F...."
    assert told(rescore(run, TAPConfig()))["schedule"] == "as asked"
    assert mask_of(rescore(run, TAPConfig())) == "FFF.......F."


def test_ablation_and_stored_probes(recorded):
    config, run = recorded
    found = ablate(run, {**grid(distance=(config.distance, "l2")), "N = 6": {"interval": 6}, "TAP": TAPConfig()})
    assert found["mask"].values.tolist()[:2] == [mask_of(run)] * 2
    assert found["schedule"].values.tolist() == ["the recording's own"] * 2 + ["as asked"] * 2
    error = rescore(run, selected_only=True)["chosen_true_error"].mean(["context", "step", "token"])
    np.testing.assert_allclose(found["true_error"].isel(setting=0), error, rtol=1e-5)
    stored = stored_probes(run)
    np.testing.assert_allclose(stored["true_error"], error, rtol=1e-5)
    assert (told(stored)["mask"], told(stored)["schedule"]) == (mask_of(run), "the recording's own")
    assert told(stored_probes(run, {"interval": 6}))["schedule"] == "as asked"


def test_a_closed_loop_recording_tells_what_ran(tmp_path):
    """One policy keeps to its configuration, the other ends windows early; the third has one predictor only."""
    pipe, config = make_tiny_pipe(), TAPConfig(interval=6, warmup_steps=2)
    policies = {
        "tap": TAPPolicy(config),
        "adaptive": AdaptiveTAPPolicy(0.0, config),
        "fixed": FixedPolicy(1, 0, config=config),
    }
    for name, policy in policies.items():
        fields = ("residual", "probe") if name != "fixed" else ("residual",)
        run = tapstudy.record(pipe, CALLS, tmp_path / name, fields=fields, policy=policy, progress=False).load()
        settled = settle(run, None, "test")
        assert settled.schedule == "the recording's own"
        mask = json.loads(settled.told(12))["mask"]
        assert mask == mask_of(run) == {"adaptive": "F" * 12}.get(name, "FF.....F....")
        assert settle(run, {"interval": 3}, "test").config.full_steps is None
        assert settled.config.orders == ((1,) if name == "fixed" else (0, 1, 2))


def test_samples_that_ran_in_full_at_different_steps():
    data = make_features()
    configuration = json.dumps({"mode": "closed-loop", "policy": {"config": TAPConfig(interval=4).to_dict()}})
    full = np.zeros((data.sizes["sample"], data.sizes["step"]), dtype=np.int8)
    full[:, [0, 1, 4]] = 1
    data = data.assign(is_full=(("sample", "step"), full)).assign_attrs(configuration=configuration)
    assert settle(data, None, "test").config.full_steps == (0, 1, 4)
    data["is_full"].values[0, 2:] = -1  # unknown there, the rest tells
    assert settle(data, None, "test").config.full_steps == (0, 1, 4)
    data["is_full"].values[0, 2] = 1
    with pytest.raises(ValueError, match=r"ran in full at different steps.*say which"):
        rescore(data)
    assert rescore(data, {"interval": 4})["is_full"].any()


def test_a_dataset_that_does_not_tell():
    data = make_features()
    assert told(rescore(data))["schedule"] == "TAP's default, as the recording does not tell its own"
    xr.testing.assert_equal(rescore(data), rescore(data, TAPConfig()))
    with pytest.raises(TypeError, match="did you mean 'interval'"):
        rescore(data, {"intervall": 4})
