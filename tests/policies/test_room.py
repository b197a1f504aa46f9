"""What a full step frees before it runs, no policy misses."""

import pytest
import torch

from tapstudy import apply_policy
from tapstudy.core.anchors import Anchors
from tapstudy.policies.base import CachePolicy
from tapstudy.policies.first_block import FirstBlockPolicy
from tapstudy.policies.teacache import TeaCachePolicy
from tests.instrument.tiny_models import make
from tests.policies.every import STEPS, every_policy

CHANNELS = 16
# of which policies that decide by the probe run in full more than once
THRESHOLDS = {"first block": FirstBlockPolicy(0.2), "teacache": TeaCachePolicy(0.2)}


def sample(name):
    tiny = make("SD3")
    with apply_policy(tiny.model, (every_policy(CHANNELS) | THRESHOLDS)[name]) as handle:
        outputs = torch.stack([tiny(**tiny.at(step, STEPS)) for step in range(STEPS)])
        (context,) = handle.summary().contexts
    assert not context.fail_opens
    assert {*context.mask} - {"F"}
    assert context.mask.count("F") > 1
    return outputs, context.mask


def one_of_each():
    """Names of policies with a history: the first of those that take in a full step by the same code."""
    steps = ("make_room", "observe", "kept", "restart")
    found = {}
    for name, policy in every_policy(CHANNELS).items():
        if isinstance(policy, CachePolicy):
            found.setdefault(tuple(getattr(type(policy), step) for step in steps), name)
    return list(found.values())


# what is off at a full step needs the history before it
@pytest.mark.parametrize("name", [*one_of_each(), "tap tokens error"])
def test_a_history_that_makes_room_predicts_the_same(monkeypatch, name):
    outputs, mask = sample(name)
    assert outputs.isfinite().all()
    monkeypatch.setattr(Anchors, "make_room", lambda self: None)
    expected, of_expected = sample(name)
    assert mask == of_expected
    assert torch.equal(outputs, expected)
