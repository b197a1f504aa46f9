import pytest
import torch
from diffusers.models.embeddings import Timesteps
from numpy.polynomial.hermite_e import hermegauss
from torch import nn

from tapstudy.models.tasks import LabelTask
from tapstudy.models.time_features import attenuate, fold, low_pass, time_projections, unfold
from tests.conftest import make_tiny_pipe
from tests.models.emoji import tiny_task


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("shift", "scale"), [(0, 1.0), (1, 1.0), (0, 0.5)])
def test_low_pass_is_the_gaussian_average_of_the_features(flip, shift, scale):
    projection = Timesteps(32, flip_sin_to_cos=flip, downscale_freq_shift=shift, scale=scale)
    nodes, weights = hermegauss(60)
    sigma, t = 3.0, torch.tensor([1.0, 20.0, 300.0])
    times = (t[:, None] + sigma * torch.tensor(nodes)[None, :]).double()
    features = projection(times.flatten()).double().view(3, 60, 32)
    mean = (features * (torch.tensor(weights) / weights.sum())[None, :, None]).sum(dim=1)
    assert torch.allclose(projection(t).double() * low_pass(projection, sigma), mean, atol=3e-5)


@pytest.mark.parametrize("kind", ["label", "text"])
def test_folded_weights_compute_what_was_trained(kind):
    """The attenuated model, and the stock one with folded weights, give the same velocity; both differ from before."""
    task = LabelTask(dict(make_tiny_pipe().transformer.config), None) if kind == "label" else tiny_task()
    modules = task.build().eval()
    x = torch.randn(2, 1, 8, 8) if kind == "label" else torch.randn(2, 3, 32, 32)
    condition = torch.tensor([1, 2]) if kind == "label" else task._ids(["apple", "plum"])

    def velocity():
        with torch.no_grad():
            return task.velocity(modules, x, torch.tensor([0.3, 0.8]), condition)

    before = velocity()
    model = modules["transformer"]
    assert time_projections(model)
    attenuate(model, 30.0)
    attenuated = velocity()
    for parent in model.modules():
        if hasattr(parent, "time_proj"):
            parent.time_proj = parent.time_proj.projection
    assert torch.equal(velocity(), before)
    fold(model, 30.0)
    assert torch.allclose(velocity(), attenuated, atol=1e-5)
    assert not torch.allclose(before, attenuated, atol=1e-5)
    unfold(model, 30.0)
    attenuate(model, 30.0)
    assert torch.allclose(velocity(), attenuated, atol=1e-2)


def test_no_clock_is_said():
    with pytest.raises(ValueError, match="Linear has no timestep embedding"):
        attenuate(nn.Linear(2, 2), 30.0)
