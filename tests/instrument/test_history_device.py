"""TAP with its history kept elsewhere samples the same image."""

from __future__ import annotations

import pytest
import torch

import tapstudy
from tapstudy import TAPConfig
from tapstudy.core import anchors as anchors_module
from tapstudy.core.anchors import Anchors
from tapstudy.core.transfer import BlockingTransfer, StreamTransfer, Transfer
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.single import SinglePolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.policies.tokens.tap_tokens import TAPTokensPolicy
from tapstudy.predictors.adams_bashforth import AdamsBashforth
from tests.core.late_streams import LateStreams


def away(policy, device):
    policy.anchors = Anchors(policy.family.num_anchors, policy.config.history_dtype, device=device)
    return policy


@pytest.mark.parametrize(
    ("make", "residual"), [(TAPPolicy, "hidden"), (lambda config: FixedPolicy(1, config=config), "latent")]
)
def test_the_sample_is_bit_equal(monkeypatch, tiny_pipe, sample, make, residual):
    """`meta` stands for host memory; copies come as late as they may."""
    config = TAPConfig(interval=4, residual=residual)
    with tapstudy.apply_policy(tiny_pipe, make(config)) as handle:
        expected = sample()
        expected_bytes = handle.summary().contexts[0].cache_bytes
    late = LateStreams()
    cpu = torch.device("cpu")
    monkeypatch.setattr(
        anchors_module,
        "transfer_between",
        lambda features, kept: StreamTransfer(cpu, late) if kept.type == "meta" else Transfer(),
    )
    for device in (None, "cpu", "meta"):
        with tapstudy.apply_policy(tiny_pipe, away(make(config), device)) as handle:
            assert torch.equal(sample(), expected)
            assert handle.summary().contexts[0].cache_bytes == expected_bytes
    if make is TAPPolicy:  # a probe and a residual away at every full step, a history of 3 back at every skip step
        (context,) = handle.summary().contexts
        assert late.log.count("copy") == 2 * context.num_full + 2 * 3 * context.num_skipped


@pytest.mark.parametrize(
    ("make", "probes"),
    [(TAPPolicy, 1), (RandomPolicy, 0), (lambda config: SinglePolicy(AdamsBashforth(), config), 0),
     (lambda config: TAPTokensPolicy(0.25, config, names="random"), 1)],
)  # fmt: skip
def test_a_skip_step_brings_the_history_back_once(monkeypatch, tiny_pipe, sample, make, probes):
    brought = []

    class Counted(BlockingTransfer):
        def prefetch(self, buffers):
            brought.append(len(buffers))
            return super().prefetch(buffers)

    monkeypatch.setattr(anchors_module, "transfer_between", Counted)
    policy = make(TAPConfig(interval=4))
    with tapstudy.apply_policy(tiny_pipe, policy) as handle:
        sample(steps=6)
    (context,) = handle.summary().contexts
    assert len(brought) == (1 + probes) * (len(context.mask) - context.num_full) > 0
