"""What is on disk equals what the model did."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
import xarray as xr

import tapstudy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.recording.store import SampleWriter
from tests.pipelines.tiny import FACTORIES
from tests.recording.runs import ALL, CONFIG, STEPS, calls_of

CALLS = calls_of([(1, 5), (2, 6)], [(3, 7)])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    from tests.conftest import make_tiny_pipe

    path = tmp_path_factory.mktemp("record") / "run.zarr"
    run = tapstudy.record(make_tiny_pipe(), CALLS, path, fields=ALL, depths=(0, 2), config=CONFIG, progress=False)
    return path, run.load()


def run_call(pipe, call):
    generators = [torch.Generator().manual_seed(seed) for seed in call["seed"]]
    arguments = {name: value for name, value in call.items() if name != "seed"}
    return pipe(**arguments, generator=generators, output_type="np").images


def by_context(tensor):
    """(2 * sample, ...) -> (sample, context, ...)."""
    return torch.stack(tensor.chunk(2), dim=1).numpy()


def test_features_equal_plain_hooks(tiny_pipe, recorded):
    """Forward hooks of torch, without any of the instrument."""
    _, run = recorded
    model, first = tiny_pipe.transformer, 0
    seen = {name: [] for name in ("probe 0", "probe 2", "residual", "input", "latent")}
    starts = []
    blocks = model.transformer_blocks

    def keep(name):
        return lambda _m, args, kwargs: seen[name].append((args[0] if args else kwargs["hidden_states"]).clone())

    handles = [
        blocks[0].attn1.register_forward_pre_hook(keep("probe 0"), with_kwargs=True),
        blocks[2].attn1.register_forward_pre_hook(keep("probe 2"), with_kwargs=True),
        blocks[0].register_forward_pre_hook(
            lambda _m, args, kwargs: starts.append((args[0] if args else kwargs["hidden_states"]).clone()),
            with_kwargs=True,
        ),
        model.norm_out.register_forward_pre_hook(lambda _m, args: seen["residual"].append(args[0] - starts[-1])),
        model.register_forward_pre_hook(
            lambda _m, args, kwargs: seen["input"].append(args[0].clone()), with_kwargs=True
        ),
        model.register_forward_hook(
            lambda _m, args, kwargs, out: seen["latent"].append(out[0] - args[0]), with_kwargs=True
        ),
    ]
    for call in CALLS:
        for values in seen.values():
            values.clear()
        images = run_call(tiny_pipe, call)
        rows = slice(first, first + len(images))
        first += len(images)
        found = run.isel(sample=rows)
        np.testing.assert_array_equal(found["image"], images)
        for step in range(STEPS):
            at = found.isel(step=step)
            for name, variable in (
                ("probe 0", at["probe"].sel(depth=0)),
                ("probe 2", at["probe"].sel(depth=2)),
                ("residual", at["residual"]),
            ):
                np.testing.assert_array_equal(variable, by_context(seen[name][step]))
            patches = seen["latent"][step].unfold(2, 2, 2).unfold(3, 2, 2)[:, 0].flatten(3).flatten(1, 2)
            np.testing.assert_array_equal(at["latent_residual"], by_context(patches))
            patches = seen["input"][step].unfold(2, 2, 2).unfold(3, 2, 2)[:, 0].flatten(3).flatten(1, 2)
            np.testing.assert_array_equal(at["latent"], by_context(patches))
    for handle in handles:
        handle.remove()
    assert first == 3


def test_scores_equal_explicit_predictions(recorded):
    """Order 1, shift 1 at step 3 from the anchors 1 and 0; at step 7 from 5 and 1: weights by hand, in float64."""
    _, run = recorded
    assert "".join("F" if full else "." for full in run["is_full"][0, 0].values) == "FF...F.."
    assert run["distance"][0, 0].values.tolist() == [0, 0, 1, 2, 3, 0, 1, 2]
    member = int(np.flatnonzero((run["order"] == 1) & (run["shift"] == 1))[0])
    for step, new, old in ((3, 1, 0), (7, 5, 1)):
        weight = (step - new - 1) / (new - old)
        probe, residual = (run[name].astype("float64") for name in ("probe", "residual"))
        probe = probe.sel(depth=0)
        predicted = [v.sel(step=new) + weight * (v.sel(step=new) - v.sel(step=old)) for v in (probe, residual)]
        actual = [v.sel(step=step) for v in (probe, residual)]

        def norm(v):
            return np.sqrt((v**2).sum("channel"))

        proxy = 1 - (predicted[0] * actual[0]).sum("channel") / (norm(predicted[0]) * norm(actual[0]))
        error = norm(predicted[1] - actual[1]) / norm(actual[1])
        np.testing.assert_allclose(run["proxy_loss"].sel(step=step).isel(predictor=member), proxy, rtol=1e-4)
        np.testing.assert_allclose(run["true_error"].sel(step=step).isel(predictor=member), error, rtol=1e-5)


def test_choice_has_the_least_proxy_loss(recorded):
    _, run = recorded
    full = run["is_full"].astype(bool)
    assert (run["choice"].where(full, -1) == -1).all()
    skipped = run.isel(step=~full[0, 0].values)
    taken = skipped["proxy_loss"].isel(predictor=skipped["choice"].astype(int))
    np.testing.assert_array_equal(taken, skipped["proxy_loss"].min("predictor"))
    assert np.isnan(run["proxy_loss"].where(full).values).all()


def test_closed_loop_is_the_accelerated_run(tiny_pipe, tmp_path):
    call = CALLS[0]
    run = tapstudy.record(
        tiny_pipe, [call], tmp_path / "run", policy=TAPPolicy(CONFIG), fields=ALL[:6], depths=(0,), progress=False
    ).load()
    choices = {}
    with tapstudy.apply_tap(tiny_pipe, CONFIG) as handle:
        handle.listen(lambda e: choices.update({e.step: e.prediction.choice.clone()}) if e.prediction else None)
        images = run_call(tiny_pipe, call)
    mask = handle.summary().contexts[0].mask
    assert "".join("F" if full else "." for full in run["is_full"][0, 0].values) == mask
    np.testing.assert_array_equal(run["image"], images)
    for step, choice in choices.items():
        np.testing.assert_array_equal(run["choice"].sel(step=step), by_context(choice))

    predictions = {}
    with tapstudy.apply_policy(tiny_pipe, TAPPolicy(CONFIG), shadow=True) as handle:
        handle.listen(
            lambda e: (
                predictions.update({e.step: (e.prediction.residual.double(), e.residual.double())})
                if e.prediction
                else None
            )
        )
        run_call(tiny_pipe, call)
    for step, (predicted, truth) in predictions.items():
        expected = by_context((predicted - truth).norm(dim=-1) / truth.norm(dim=-1))
        at = run.sel(step=step)
        np.testing.assert_allclose(at["true_error"].isel(predictor=at["choice"].astype(int)), expected, rtol=1e-4)


@pytest.mark.parametrize("policy", [FixedPolicy(1, 0, config=CONFIG), OraclePolicy(CONFIG)])
def test_policies_without_a_probe(tiny_pipe, tmp_path, policy):
    fields = ("true_error", "choice", "probe")
    with pytest.raises(ValueError, match="computes no proxy loss"):
        tapstudy.record(tiny_pipe, CALLS, tmp_path, policy=policy)
    with pytest.raises(ValueError, match="takes no probe of block 0"):
        tapstudy.record(tiny_pipe, CALLS, tmp_path, policy=policy, fields=fields)
    run = tapstudy.record(
        tiny_pipe, CALLS[1:], tmp_path / "run", policy=policy, fields=fields, depths=(1,), progress=False
    )
    assert np.isfinite(run["probe"].values).all()
    if isinstance(policy, OraclePolicy):
        skipped = run.isel(step=~run["is_full"][0, 0].values.astype(bool)).load()
        taken = skipped["true_error"].isel(predictor=skipped["choice"].astype(int))
        np.testing.assert_array_equal(taken, skipped["true_error"].min("predictor"))


def test_guidance_in_two_calls_and_frames(tmp_path):
    pipe, call = FACTORIES["wan"]()
    call = {**call, "seed": 3, "output_type": "np"}
    fields = ("residual", "true_error", "choice")
    run = tapstudy.record(pipe, [call], tmp_path / "run", fields=fields, config=CONFIG, progress=False).load()
    residuals = {}
    with tapstudy.apply_policy(pipe, tapstudy.policies.full.FullPolicy()) as handle:
        handle.listen(lambda e: residuals.update({(e.context, e.step): e.residual.clone()}))
        plain = {name: value for name, value in call.items() if name != "seed"}
        pipe(**plain, generator=torch.Generator().manual_seed(3))
    assert run.sizes["context"] == 2
    assert len(residuals) == 2 * run.sizes["step"]
    for (context, step), residual in residuals.items():
        np.testing.assert_array_equal(run["residual"].sel(context=context, step=step), residual.numpy())
    frames, rows, columns = (int(run[name].max()) + 1 for name in ("frame", "row", "col"))
    assert frames * rows * columns == run.sizes["token"]
    expected = np.stack(np.unravel_index(np.arange(run.sizes["token"]), (frames, rows, columns)))
    np.testing.assert_array_equal(np.stack([run["frame"], run["row"], run["col"]]), expected)


def test_run_without_skip_steps_is_whole(tiny_pipe, tmp_path):
    config = tapstudy.TAPConfig(interval=1)
    run = tapstudy.record(tiny_pipe, CALLS[1:], tmp_path / "run", config=config, progress=False)
    assert (run["is_full"] == 1).all()
    assert np.isnan(run["true_error"].values).all()


def test_half_precision_and_reductions(tiny_pipe, recorded, tmp_path):
    from tapstudy.recording.reduce import Norms

    _, full = recorded
    run = tapstudy.record(
        tiny_pipe, CALLS, tmp_path / "run", config=CONFIG, dtype="float16", fields=("residual", "true_error"),
        reduce={"residual": Norms()}, progress=False,
    )  # fmt: skip
    assert run["residual"].dtype == run["true_error"].dtype == np.float16
    np.testing.assert_array_equal(run["true_error"], full["true_error"].astype("float16"))
    norms = np.sqrt((full["residual"].astype("float64") ** 2).sum("channel"))
    np.testing.assert_allclose(run["residual"][..., 0].astype("float64"), norms, rtol=1e-3)


PLAIN = """
import json, sys, warnings
warnings.simplefilter("error")
import xarray as xr
run = xr.open_zarr(sys.argv[1])
assert not any(name.split(".")[0] == "tapstudy" for name in sys.modules)
coords = {"seed", "draw", "draws", "label", "timestep", "sigma", "row", "col", "order", "shift"}
coords |= {"context", "step", "depth"}
assert set(run.coords) == coords, run.coords
for name, variable in run.variables.items():
    assert variable.attrs["units"] and variable.attrs["long_name"], name
assert run["probe"].dims == ("sample", "context", "step", "depth", "token", "channel")
assert run["true_error"].dims == ("sample", "context", "step", "token", "predictor")
assert run["image"].dims == ("sample", "y", "x", "band")
assert run["seed"].values.tolist() == [5, 6, 7] and run["label"].values.tolist() == ["1", "2", "3"]
assert run["draw"].values.tolist() == [0, 0, 0] and run["draws"].values.tolist() == [1, 1, 1]
assert run["row"].values.tolist() == [i // 4 for i in range(16)]
assert run["col"].values.tolist() == [i % 4 for i in range(16)]
assert run["depth"].values.tolist() == [0, 2]
assert run["timestep"][0] == 1000 and run["sigma"][0] == 1
assert float(run["residual"].sel(context="uncond", step=3).isel(sample=2).sum()) == float(sys.argv[2])
assert run.attrs["schema_version"] == 1 and run.attrs["Conventions"].startswith("CF-")
assert json.loads(run.attrs["configuration"])["policy"]["config"]["interval"] == 4
assert set(json.loads(run.attrs["versions"])) >= {"tapstudy", "torch", "diffusers", "xarray", "zarr"}
"""


def test_opens_without_tapstudy(recorded):
    path, run = recorded
    total = float(run["residual"].sel(context="uncond", step=3).isel(sample=2).sum())
    done = subprocess.run([sys.executable, "-c", PLAIN, path, repr(total)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("seeds", "dtype"),
    [([1, 2**63 + 1], "uint64"), ([2**64 - 1, 2**64 - 2], "uint64"), ([2**63 - 1, 0], "int64"),
     ([-(2**63), 2**53 + 1], "int64")],
)  # fmt: skip
def test_seeds_are_exact(tiny_pipe, tmp_path, seeds, dtype):
    """Written, opened, selected and resumed."""
    calls = calls_of(*([(1, seed)] for seed in seeds))

    def stop(_module, _args):
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        finish = SampleWriter.finish
        patch.setattr(SampleWriter, "finish", lambda self: finish(self) if self.sample == 0 else stop(0, 0))
        with pytest.raises(tapstudy.RecordingError):
            tapstudy.record(tiny_pipe, calls, tmp_path, fields=("choice",), config=CONFIG, progress=False)
    assert tapstudy.open_recording(tmp_path)["seed"].values.tolist() == seeds[:1]
    run = tapstudy.record(tiny_pipe, calls, tmp_path, fields=("choice",), config=CONFIG, progress=False)
    assert run["seed"].dtype == dtype
    for found in (run, tapstudy.open_recording(tmp_path).load()):
        assert found["seed"].values.tolist() == seeds
        assert int(found.isel(sample=1)["seed"]) == seeds[1]
        assert found.isel(sample=(found["seed"] == seeds[1]).values)["seed"].values.tolist() == seeds[1:]


def test_equal_coordinates_mean_equal_noise(tmp_path):
    """Prompts that share one seed do not share the noise; where seed, draw and draws agree, it is the same."""
    pipe, call = FACTORIES["stable_diffusion_3"]()
    call = {name: value for name, value in call.items() if name not in ("prompt", "negative_prompt")}
    shared = [(["a", "b"], 0), (["a"], 0), (["c", "d", "a"], 0), (["b", "a"], 0)]
    own = [(["a", "b"], [0, 0]), (["c", "a"], [1, 0])]
    calls = [call | {"prompt": prompt, "seed": seed, "output_type": "latent"} for prompt, seed in (*shared, *own)]
    run = tapstudy.record(pipe, calls, tmp_path / "run", fields=("latent",), config=CONFIG, progress=False).load()
    assert run["draw"].values.tolist() == [0, 1, 0, 0, 1, 2, 0, 1, 0, 0, 0, 0]
    assert run["draws"].values.tolist() == [2, 2, 1, 3, 3, 3, 2, 2, 1, 1, 1, 1]
    noise = run["latent"].isel(context=0, step=0).values
    told = list(zip(*(run[name].values.tolist() for name in ("seed", "draw", "draws")), strict=True))
    for i, j in itertools.combinations(range(run.sizes["sample"]), 2):
        if told[i] == told[j]:
            np.testing.assert_array_equal(noise[i], noise[j])
    assert not np.array_equal(noise[0], noise[1])  # one seed, two prompts
    assert told[0] != told[1]


def test_netcdf_round_trip(recorded, tmp_path):
    from tapstudy.recording.export import to_netcdf

    path, run = recorded
    with pytest.raises(tapstudy.RecordingError, match=r"writes up to 0\.0 MB: select variables"):
        to_netcdf(path, tmp_path / "run.nc", max_bytes=1000)
    assert not list(tmp_path.iterdir())
    out = to_netcdf(path, tmp_path / "run.nc")
    with xr.open_dataset(out, engine="h5netcdf") as back:
        assert set(back.coords) == set(run.coords)
        assert back.attrs["configuration"] == run.attrs["configuration"]
        for name, variable in run.variables.items():
            np.testing.assert_array_equal(back[name].values, variable.values)
            assert back[name].dtype == variable.dtype or variable.dtype.kind == "T"
            assert back[name].attrs == variable.attrs
