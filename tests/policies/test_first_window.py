import pytest
import torch

from tapstudy import TAPConfig
from tapstudy.policies.base import RunInfo
from tapstudy.policies.first_window import FirstWindowPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.table import each_row


@each_row(("order", "shift"), [(1, 0), (2, 3)])
def test_tap_in_the_first_window_and_fixed_later(order, shift):
    """Three windows of N = 4 after a warm-up of 3: step for step the residual of the one policy or of the other."""
    config = TAPConfig(interval=4)
    policies = [
        FirstWindowPolicy(order, shift, config=config),
        TAPPolicy(config),
        FixedPolicy(order, shift, config=config),
    ]
    features = torch.randn(15, 2, 9, 5, generator=torch.Generator().manual_seed(0))  # (step, batch, token, channel)
    for policy in policies:
        policy.begin(RunInfo(num_steps=15, grid=(1, 3, 3)))
    differ = 0
    for step, probe in enumerate(features):
        if policies[0].wants_full(step):
            for policy in policies:
                policy.observe(step, probe, probe.flip(-1))
            continue
        own, tap, fixed = (policy.predict(step, probe) for policy in policies)
        torch.testing.assert_close(own.residual, tap.residual if step < 6 else fixed.residual, rtol=0, atol=0)
        differ += not torch.equal(tap.residual, fixed.residual)
        if step >= 6:
            assert len(own.choice.unique()) == 1
            assert own.proxy_loss is None
    assert differ == 9


def test_what_cannot_be_meant():
    for config, message in (
        (TAPConfig(full_steps=(0, 1, 2, 5)), "full_steps have no warm-up"),
        (TAPConfig(orders=(0, 2)), "no predictor of order 1 and shift 0"),
    ):
        with pytest.raises(ValueError, match=message):
            FirstWindowPolicy(1, config=config)
