"""What a full step frees before it runs, no policy misses."""

import pytest
import torch

from tapstudy import apply_policy
from tapstudy.core.anchors import Anchors
from tapstudy.policies.anchored import AnchoredPolicy
from tests.instrument.tiny_models import make
from tests.policies.every import STEPS, every_policy

CHANNELS = 16


def sample(name):
    tiny = make("SD3")
    with apply_policy(tiny.model, every_policy(CHANNELS)[name]) as handle:
        outputs = torch.stack([tiny(**tiny.at(step, STEPS)) for step in range(STEPS)])
        return outputs, handle.summary().mask


def takes_in_as_all(policy):
    """Tell whether a policy takes in a full step by the code that others share."""
    steps = ("make_room", "observe", "kept", "restart")
    return all(getattr(type(policy), step, None) is getattr(AnchoredPolicy, step) for step in steps)


NAMES = ["tap", *(name for name, policy in every_policy(CHANNELS).items() if not takes_in_as_all(policy))]


@pytest.mark.parametrize("name", NAMES)
def test_a_history_that_makes_room_predicts_the_same(monkeypatch, name):
    outputs, mask = sample(name)
    monkeypatch.setattr(Anchors, "make_room", lambda self: None)
    expected, of_expected = sample(name)
    assert mask == of_expected
    assert torch.equal(outputs, expected)
