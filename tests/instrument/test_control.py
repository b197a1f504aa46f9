"""A ControlNet that begins late or ends midway: the history starts anew where its residuals come or go."""

from __future__ import annotations

import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.instrument.trajectory import taking_part
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import make

STEPS = 12
CONFIG = TAPConfig(interval=4, warmup_steps=2)  # FF...F...F..
RESIDUALS = {
    "Flux": lambda: {
        "controlnet_block_samples": [torch.ones(2, 24, 32)] * 2,
        "controlnet_single_block_samples": [torch.ones(2, 24, 32)],
    },
    "SD3": lambda: {"block_controlnet_hidden_states": [torch.ones(2, 24, 16)]},
    "QwenImage": lambda: {"controlnet_block_samples": [torch.ones(2, 24, 32)]},
}


def run(tiny, policy, controlled, absent):
    """Outputs, mask and reasons of a run whose steps `controlled` have a ControlNet, and others what `absent` makes."""
    outputs = []
    with apply_policy(tiny.model, policy) as handle:
        for step in range(STEPS):
            extra = RESIDUALS[tiny_name(tiny)]()
            if step not in controlled:
                extra = {name: absent(value) for name, value in extra.items()}
            outputs.append(tiny(**tiny.at(step, STEPS), **extra))
        (context,) = handle.summary().contexts
        return outputs, context.mask, context.fail_opens


def tiny_name(tiny):
    return next(name for name in RESIDUALS if type(tiny.model).__name__.startswith(name))


ABSENT = {
    "left out": lambda value: None,
    "an empty list": lambda value: value[:0] or None,
    "zeros": lambda value: [torch.zeros_like(part) for part in value],
}
CASES = {
    "ends": (range(7), "FF...F.F.F.."),
    "begins": (range(3, STEPS), "FF.F.F...F.."),
    "always": (range(STEPS), "FF...F...F.."),
}


@pytest.mark.parametrize(
    ("name", "site", "case", "absent"),
    [
        ("Flux", "latent", "ends", "zeros"),
        ("SD3", "hidden", "begins", "left out"),
        ("QwenImage", "hidden", "ends", "an empty list"),
        ("Flux", "hidden", "always", "left out"),
    ],
)
def test_a_full_step_where_a_controlnet_comes_or_goes(name, site, case, absent):
    controlled, mask = CASES[case]
    config = TAPConfig(interval=4, warmup_steps=2, residual=site)
    _, found, reasons = run(make(name), TAPPolicy(config), controlled, ABSENT[absent])
    assert found == mask
    assert sum(reasons.values()) == (case != "always")
    assert all("control" in reason and reason.endswith("came or went") for reason in reasons)


def test_no_prediction_mixes_what_was_before_with_what_comes_after():
    """Order 0 at the step behind the change gives the residual of the change's full step, not one from before."""
    tiny = make("Flux")
    outputs, _, _ = run(tiny, FixedPolicy(2, config=CONFIG), range(7), ABSENT["left out"])
    alone, _, _ = run(
        tiny, FixedPolicy(2, config=TAPConfig(full_steps=(0, 1, 2, 5, 7, 9), orders=(2,))), (), ABSENT["left out"]
    )
    assert torch.equal(outputs[7], alone[7])
    assert not torch.equal(outputs[5], alone[5])
    # only the full step 7 is known: reuse
    reused, _, _ = run(tiny, FixedPolicy(0, config=TAPConfig(full_steps=(0, 7), orders=(0,))), (), ABSENT["left out"])
    assert relative_error(outputs[8], reused[8]) < 1e-5


def test_what_takes_part():
    one, zero = torch.ones(2), torch.zeros(2)
    assert taking_part({"hidden_states": zero, "key": [one], "guidance": None, "return_dict": True, "kwargs": {}}) == {
        "hidden_states",
        "key",
    }
    for nothing in (None, [], [zero], [zero, zero], {3: zero}, False, zero):
        assert taking_part({"controlnet_block_samples": nothing}) == set()
    for something in ([one], [zero, one], {3: one}, one):
        assert taking_part({"controlnet_block_samples": something}) == {"controlnet_block_samples"}
