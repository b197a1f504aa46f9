import numpy as np
import pytest
import torch
import xarray as xr
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

import tapstudy
from tapstudy.analysis.error_propagation import error_propagation, per_image
from tapstudy.bench.claims.solver_runs import solver_runs
from tapstudy.bench.image_set import ImageSet
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.oracle import OraclePolicy
from tests.training.emoji import tiny_pipe as tiny_text_pipe

CONFIG = tapstudy.TAPConfig(full_steps=(0, 1, 2, 5))
IMAGES = ImageSet("mnist-dit", ((7, 3), (8, 1), (9, 4)), steps=7)


@pytest.fixture(scope="module")
def runs():
    from tests.conftest import make_tiny_pipe

    policies = {"hold": FixedPolicy(0, config=CONFIG), "full": FullPolicy()}
    return solver_runs(make_tiny_pipe(), policies, IMAGES, batch_size=2, progress=False)


def test_layout(runs):
    assert dict(runs.sizes) == {"policy": 3, "sample": 3, "node": 8, "step": 7, "token": 16, "latent_channel": 4}
    assert runs.policy.values.tolist() == ["reference", "hold", "full"]
    assert runs.label.values.tolist() == ["3", "1", "4"]
    assert runs.seed.values.tolist() == [7003, 8001, 9004]
    assert runs.is_full.sel(policy="hold", sample=0).values.tolist() == [1, 1, 1, 0, 0, 1, 0]
    assert runs.is_full.sel(policy="reference").all()
    np.testing.assert_allclose(runs.node_sigma[:-1], runs.sigma)
    assert runs.node_sigma[-1] == 0
    assert all({"long_name", "units"} <= values.attrs.keys() for values in runs.values())


def test_states_are_those_of_the_pipeline(runs, tiny_pipe):
    generators = [torch.Generator().manual_seed(seed) for seed in (7003, 8001)]
    last = tiny_pipe([3, 1], 7, 2.0, generator=generators, output_type="latent").images  # (2, 1, 8, 8)
    state = runs.state.sel(policy="reference").isel(node=-1, sample=slice(2)).values
    image = np.zeros((2, 8, 8), np.float32)
    for n, (row, col) in enumerate(zip(runs.row.values, runs.col.values, strict=True)):
        image[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = state[:, n].reshape(2, 2, 2)
    np.testing.assert_array_equal(image, last[:, 0].numpy())
    assert (runs.state.isel(node=0) == runs.state.isel(node=0, policy=0)).all()


def test_exact_velocities(runs):
    """Read off the states or asked of the model, a full step's velocity is the same up to rounding."""
    eps = 1e-6 * float(abs(runs.state).max())
    weight = xr.DataArray(-np.diff(runs.node_sigma), dims="step")  # 0.001 at the last step, whose states hide errors
    full = runs.is_full == 1
    gap = weight * abs(runs.velocity_used - runs.velocity_exact)
    assert float(gap.where(full).max()) < eps
    assert float(gap.where(~full).isel(step=slice(3, 6)).max()) > 100 * eps
    reference = runs.sel(policy="reference", drop=True)
    assert float(abs(runs.sel(policy="full").state - reference.state).max()) < 1e-5


def test_propagation_on_the_tiny_model(runs):
    errors = error_propagation(runs.drop_sel(policy="full"))
    assert float(errors.identity_gap.max()) < 1e-6
    table = per_image(errors)
    np.testing.assert_allclose(table.deviation, table.path_length * table.coherence * table.amplification, rtol=1e-5)


def test_trained_model():
    """One image of the embedded model: the oracle's error is the least where both start from the same features."""
    pipe = tapstudy.load("mnist-dit")
    policies = {"hold": FixedPolicy(0, config=CONFIG), "oracle": OraclePolicy(CONFIG)}
    images = ImageSet("mnist-dit", ((0, 3),), steps=7, guidance=1.0)
    errors = error_propagation(solver_runs(pipe, policies, images, progress=False))
    first = errors.relative_local_error.isel(sample=0, step=3).mean("token")
    assert first.sel(policy="oracle") < first.sel(policy="hold")
    assert float(errors.identity_gap.max()) < 1e-5
    coherence = errors.coherence.isel(step=slice(3, None))
    assert ((coherence > 0) & (coherence <= 1 + 1e-5)).all()


def test_states_of_a_model_of_text():
    """Read off the states or asked of the model, its velocities agree, too; tokens are its patches."""
    pipe = tiny_text_pipe()
    images = ImageSet("emoji-flux", ((1, "red apple"), (2, "rocket")), steps=4, guidance=3.0)
    runs = solver_runs(pipe, {"full": FullPolicy()}, images, progress=False)
    assert runs.label.values.tolist() == ["red apple", "rocket"]
    weight = xr.DataArray(-np.diff(runs.node_sigma), dims="step")
    gap = weight * abs(runs.velocity_used - runs.velocity_exact)
    assert float(gap.max()) < 1e-5 * float(abs(runs.state).max())


def test_what_cannot_be_run(tiny_pipe):
    with pytest.raises(ValueError, match="no images"):
        solver_runs(tiny_pipe, {}, IMAGES[:0], progress=False)
    with pytest.raises(TypeError, match="needs an embedded pipeline"):
        solver_runs(tiny_pipe.transformer, {}, IMAGES)
    with pytest.raises(ValueError, match="'reference' is taken"):
        solver_runs(tiny_pipe, {"reference": FullPolicy()}, IMAGES)
    for scheduler in (DDIMScheduler(), FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)):
        with pytest.raises(ValueError, match="needs a deterministic FlowMatchEulerDiscreteScheduler"):
            solver_runs(LabelPipeline(tiny_pipe.transformer, scheduler), {}, IMAGES)
