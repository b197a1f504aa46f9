"""Roughness in time: known answers, and every supported pipeline."""

import math

import numpy as np
import pytest
import torch

import tapstudy
from tapstudy.bench.clock.trajectory_differences import TrajectoryDifferences, powers
from tapstudy.instrument.passes import QUANTITIES, FullPass
from tapstudy.instrument.time_features import time_embedders
from tests.conftest import make_tiny_pipe
from tests.pipelines.tiny import FACTORIES
from tests.table import each_row
from tests.training.emoji import tiny_pipe as tiny_text_pipe

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CALL = {"class_labels": [1, 2], "seed": [0, 1]}
FEW = {"steps": (20,), "offsets": (1.0,), "places": 1, "points": 6}


def tremble(pipe):
    """Add to what reads the features of the timestep something that changes wildly from step to step."""
    for model in (pipe.transformer, getattr(pipe, "transformer_2", None)):
        for embedder in time_embedders(model) if model is not None else ():
            embedder.linear.register_forward_hook(
                lambda _, args, output: output + 3 * torch.sin(3000 * args[0].float().mean(dim=-1, keepdim=True)
                                                              * torch.arange(1, output.shape[-1] + 1)).to(output)
            )  # fmt: skip


def settings(name):
    """The number of calls of the model a step too: one for every branch that is no half of a batch."""
    pipe, call = FACTORIES[name]()
    call = {key: value for key, value in call.items() if key not in ("num_inference_steps", "output_type")}
    return pipe, {**call, "seed": 0}


# clocks of every kind: in the blocks, times to 1000 and to 1, rising and falling, beside guidance
NAMES = ("dit", "flux", "wan", "lumina2")
# passes let by, pictures beside the image, branches that end early, two calls a step, and two transformers
OTHERS = (
    "stable_diffusion_3_skip_layer_guidance", "flux_kontext", "z_image_truncated", "stable_diffusion_3_heun", "wan22",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_smooth_clock_and_one_that_trembles(name):
    """In residual and output: next to nothing of a step is the clock's, or nearly all."""
    pipe, call = settings(name)
    with tapstudy.smooth_time(pipe, 300):
        smooth = tapstudy.time_roughness(pipe, call, **FEW)
    tremble(pipe)
    rough = tapstudy.time_roughness(pipe, call, **FEW)
    for quantity in QUANTITIES:
        assert smooth["clock_share"].sel(quantity=quantity).item() < 0.1
        assert rough["clock_share"].sel(quantity=quantity).item() > 0.5
    assert smooth["suggested_sigma"].item() == 0
    assert rough["suggested_sigma"].item() > 40
    assert smooth.attrs["smooth_time"] == 300


class Recorded:
    """Passes of a model whose features are functions of step and row."""

    def __init__(self, function, steps, batch=2, transformer=lambda step: "transformer"):
        self.passes = [
            FullPass(
                transformer(step), "default", 1000.0 - 20 * step,
                {name: torch.tensor([[function(step, row)] for row in range(batch)]) for name in QUANTITIES}, ((), {}),
            )
            for step in range(steps)
        ]  # fmt: skip

    def differences(self, samples=2, **changes):
        found = TrajectoryDifferences(samples, **{"interval": 4, "keep": (), "copy": lambda one: one, **changes})
        for one in self.passes:
            found.add(one)
        return found


def test_differences_by_hand():
    """f = i^2 + 1 in the first sample and its third multiple, reversed in sign, in the other."""
    found = Recorded(lambda i, row: (1.0, -3.0)[row] * (i**2 + 1), 6).differences()
    np.testing.assert_allclose(found.timesteps, [1000, 980, 960, 940, 920, 900])
    change = [(2 * i - 1) / ((i - 1) ** 2 + 1) for i in range(1, 6)]
    second = [2 / (i**2 + 1) for i in range(1, 5)]
    for sample in range(2):
        np.testing.assert_allclose(found.changes()[:, 1:, sample], [change] * 3, rtol=1e-6)
        np.testing.assert_allclose(found.second_differences()[:, 1:-1, sample], [second] * 3, rtol=1e-6)
    assert np.isnan(found.second_differences()[:, [0, -1]]).all()
    # full steps 0, 1, 2 and 6; at 3, 4, 5 order 0 gives f(2) = 5, order 1 f(2) + 3 k, order 2 the parabola
    truth = np.array([10, 17, 26])
    for order, forecast in enumerate([[5, 5, 5], [8, 11, 14], [8 + 1, 11 + 4, 14 + 9]]):
        wanted = math.sqrt(((truth - forecast) ** 2).sum() / (truth**2).sum())
        np.testing.assert_allclose(found.forecast_errors()[order], wanted, rtol=1e-5)


def test_branches_of_a_batch_are_summed():
    features = [torch.tensor([[1.0], [2.0], [3.0], [4.0]])]
    np.testing.assert_allclose(powers(features, 2), [[1 + 9, 4 + 16]])
    with pytest.raises(ValueError, match="a batch of 4 for 3 samples"):
        powers(features, 3)


def test_a_change_of_the_transformer_is_no_change_in_time():
    found = Recorded(lambda i, row: float(i + 1), 8, transformer=lambda i: str(i > 3)).differences()
    assert np.flatnonzero(np.isnan(found.changes()[0, :, 0])).tolist() == [0, 4]
    assert np.flatnonzero(np.isnan(found.second_differences()[0, :, 0])).tolist() == [0, 3, 4, 7]


def linear_clock(pipe, function):
    """Let the output of the model be a function of time, 0 to 1000, whatever the latent."""

    class Timed(type(pipe.transformer)):
        def forward(self, hidden_states, timestep=None, class_labels=None, return_dict=True):
            (output,) = super().forward(hidden_states, timestep, class_labels, return_dict=False)
            values = function(timestep.double()).to(output)
            return (values[:, None, None, None].expand_as(output),)

    pipe.transformer.__class__ = Timed


def test_clock_by_hand():
    """Output t^2: change (2 t d + d^2) / t^2, second difference 2 d^2 / t^2, and no fourth one."""
    pipe = make_tiny_pipe()
    linear_clock(pipe, lambda t: (t / 100) ** 2)
    found = tapstudy.time_roughness(pipe, CALL, steps=(20,), offsets=(10.0, 400.0, 600.0), places=3, points=4)
    output = found.sel(quantity="output")
    t, d = found["place_time"], found["offset"]
    inside = (d <= t) & (t <= 1000 - d)
    assert inside.any("place").values.tolist() == [True, True, False]
    for name, wanted in (("clock_change", (2 * t * d + d**2) / t**2), ("clock_second_difference", 2 * d**2 / t**2)):
        got = output[name].isel(sample=0)  # (place, offset), NaN outside
        np.testing.assert_allclose(got, wanted.where(inside).transpose("place", "offset"), rtol=1e-3)
    assert float(output["clock_share"].max()) < 1e-4
    h = 999 / 19
    second = output["second_difference"].isel(steps=0, sample=0, step=slice(1, -1))
    np.testing.assert_allclose(second, 2 * h**2 / output["time"].isel(steps=0, step=slice(1, -1)) ** 2, rtol=1e-3)


def test_noise_of_the_clock_alone():
    """Output of independent noise at every time: the share is 1 but for chance, and the size that of the noise."""
    pipe = make_tiny_pipe()
    linear_clock(pipe, lambda t: 1 + 0.1 * torch.sin(1e4 * t * t))
    found = tapstudy.time_roughness(pipe, CALL, steps=(50,), offsets=(1.0,), places=1, points=40)
    output = found.sel(quantity="output")
    variance = 0.1**2 / 2
    assert float((output["tremble"] ** 2).mean()) == pytest.approx(6 * variance, rel=0.5)
    assert float((output["second_difference"] ** 2).mean()) == pytest.approx(6 * variance, rel=0.5)
    assert float(output["clock_share"].mean()) > 0.5


@each_row("value", [0.0, 1.0])
def test_a_model_that_does_nothing(value):
    """Nothing trembles, nothing changes, and nothing is divided by."""
    pipe = make_tiny_pipe()
    linear_clock(pipe, lambda t: value + 0 * t)
    found = tapstudy.time_roughness(pipe, CALL, **FEW).sel(quantity="output")
    assert not found["clock_share"].any()
    assert not found["clock_change"].any()
    assert not found["second_difference"].isel(step=slice(1, -1)).any()


def test_nothing_is_skipped():
    found = tapstudy.time_roughness(make_tiny_pipe(), CALL, **FEW, interval=1)
    assert found["suggested_order"].item() == -1
    assert np.isnan(found["forecast_error"]).all()


def test_half_precision():
    pipe = make_tiny_pipe(dtype=torch.bfloat16)
    found = tapstudy.time_roughness(pipe, CALL, **FEW)
    assert np.isfinite(found["clock_share"]).all()


def test_cost_and_layout():
    """293 full passes as stated, of one call a step; the model is as it was, to the bit."""
    pipe = make_tiny_pipe()
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    calls = []
    handle = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    found = tapstudy.time_roughness(pipe, CALL)
    handle.remove()
    assert found.attrs["full_passes"] == len(calls) == 293
    assert dict(found.sizes) == {
        "quantity": 3, "sample": 2, "steps": 3, "step": 50, "point": 8, "place": 5, "offset": 7, "order": 3,
    }  # fmt: skip
    assert all("units" in found[name].attrs and "long_name" in found[name].attrs for name in found.data_vars)
    assert found["time"].sel(steps=20).count() == 20
    assert found["seed"].values.tolist() == [0, 1]
    assert not pipe.transformer._forward_hooks
    assert not hasattr(pipe.transformer, "_diffusers_hook")
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())


def test_two_calls_a_step_cost_twice():
    """The text pipeline calls its model once for each guidance branch, with times from 0 to 1."""
    call = {"prompt": ["apple"], "seed": [0]}
    guided = tapstudy.time_roughness(tiny_text_pipe(), call, **FEW)
    alone = tapstudy.time_roughness(tiny_text_pipe(), {**call, "guidance_scale": 1.0}, **FEW)
    assert alone.attrs["full_passes"] == 20 + 1 * 3 + 5 * 6
    assert guided.attrs["full_passes"] == 2 * alone.attrs["full_passes"]
    assert 900 < float(guided["time"].max()) <= 1000


def test_the_trajectory_is_the_pipelines_own():
    """Differences of what the unwatched model makes, and a pass run again makes the same."""
    pipe = make_tiny_pipe()
    outputs = []
    handle = pipe.transformer.register_forward_hook(lambda *args: outputs.append(args[-1][0].double()))
    pipe([1, 2], 20, generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)])
    handle.remove()
    found = tapstudy.time_roughness(pipe, CALL, **FEW).sel(quantity="output", steps=20)

    def size(value):
        return value.square().flatten(1).sum(dim=1).view(2, 2).sum(dim=0).sqrt()

    for step in range(1, 19):
        before, now, after = outputs[step - 1 : step + 2]
        wanted = size(after - 2 * now + before) / size(now)
        np.testing.assert_allclose(found["second_difference"].sel(step=step), wanted, rtol=1e-3)
        np.testing.assert_allclose(found["change"].sel(step=step), size(now - before) / size(before), rtol=1e-3)


@pytest.mark.parametrize("name", OTHERS)
def test_other_trajectories(name):
    pipe, call = settings(name)
    found = tapstudy.time_roughness(pipe, call, **FEW)
    assert np.isfinite(found["clock_share"]).all()
    assert np.isfinite(found["clock_change"]).all()


def under_a_policy():
    pipe = make_tiny_pipe()
    tapstudy.apply_tap(pipe)
    return pipe


@each_row(
    ("changes", "error", "message"),
    [
        ({"steps": ()}, ValueError, "steps must be at least 6"),
        ({"steps": (5,)}, ValueError, "steps must be at least 6"),
        ({"points": 0}, ValueError, "points and interval at least 1"),
        ({"offsets": (0.0,)}, ValueError, "offsets must be above 0"),
        ({"call": {"class_labels": [1]}}, ValueError, "needs 'seed'"),
        ({"pipe": make_tiny_pipe().transformer}, TypeError, "needs a pipeline"),
        ({"pipe": under_a_policy()}, RuntimeError, "already"),
    ],
)
def test_refusals(changes, error, message):
    arguments = {"pipe": make_tiny_pipe(), "call": CALL, **FEW, **changes}
    with pytest.raises(error, match=message):
        tapstudy.time_roughness(arguments.pop("pipe"), arguments.pop("call"), **arguments)
