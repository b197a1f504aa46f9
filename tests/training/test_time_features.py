import pytest
import torch
from torch import nn

from tapstudy.instrument.time_features import time_embedders
from tapstudy_training.tasks import LabelTask
from tapstudy_training.time_features import attenuate, fold, unfold
from tests.conftest import make_tiny_pipe
from tests.instrument.tiny_models import make
from tests.training.emoji import tiny_task


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
    assert time_embedders(model)
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


def test_models_that_cannot_be_attenuated():
    """One without a clock, and one whose projection is shared with guidance."""
    with pytest.raises(ValueError, match="Linear has no timestep embedding"):
        attenuate(nn.Linear(2, 2), 30.0)
    with pytest.raises(ValueError, match="makes no features for the timestep alone"):
        attenuate(make("Flux").model, 30.0)
