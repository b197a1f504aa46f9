import pytest
import torch

from tapstudy import TAPConfig
from tapstudy.policies.base import RunInfo
from tapstudy.policies.shuffled import ShuffledPolicy
from tapstudy.policies.tap import TAPPolicy

TOKENS = 64


@pytest.fixture
def both():
    """Predictions of TAP and the control, at two steps from the same state."""

    def run(seed=0, **settings):
        generator = torch.Generator().manual_seed(1)
        noise = torch.randn(6, 2, TOKENS, 5, generator=generator)
        found = {}
        for name, policy in (
            ("tap", TAPPolicy(TAPConfig(**settings))),
            ("shuffled", ShuffledPolicy(TAPConfig(**settings), seed=seed)),
        ):
            policy.begin(RunInfo(num_steps=20, grid=(1, 8, 8)))
            for step in range(3):
                policy.observe(step, noise[step], noise[step])
            found[name] = [policy.predict(step, noise[step]) for step in (4, 5)]
        return found["tap"], found["shuffled"]

    return run


def counts(choice):
    return torch.nn.functional.one_hot(choice, 15).sum(dim=1)  # (batch, predictor)


def test_same_choices_by_other_tokens(both):
    for tap, shuffled in zip(*both(), strict=True):
        assert torch.equal(counts(tap.choice), counts(shuffled.choice))
        assert (tap.choice != shuffled.choice).float().mean() > 0.3
        torch.testing.assert_close(tap.proxy_loss, shuffled.proxy_loss, rtol=2e-6, atol=0)
        assert not torch.equal(tap.residual, shuffled.residual)


def test_deterministic_and_new_at_every_seed_step_and_sample(both):
    first, again, other = (both(seed=seed)[1] for seed in (3, 3, 4))
    assert all(torch.equal(a.choice, b.choice) for a, b in zip(first, again, strict=True))
    assert all(not torch.equal(a.choice, b.choice) for a, b in zip(first, other, strict=True))
    policy = ShuffledPolicy(TAPConfig(orders=(0, 1), shifts=(0,)))
    policy.begin(RunInfo(num_steps=20))
    probe = torch.zeros(2, TOKENS, 2)
    probe[..., 0] = 1
    moved = probe.clone()
    moved[:, : TOKENS // 2, 1] = 1  # half of the tokens turn; the rest stay, and take order 0
    policy.observe(0, probe, probe)
    policy.observe(1, moved, moved)
    later = probe.clone()
    later[:, : TOKENS // 2, 1] = 2
    a, b = (policy.predict(step, later).choice for step in (2, 3))
    assert not torch.equal(a, b)
    assert not torch.equal(a[0], a[1])


def test_one_choice_per_step_cannot_be_shuffled(both):
    for tap, shuffled in zip(*both(granularity="step"), strict=True):
        assert torch.equal(tap.choice, shuffled.choice)
