"""The compiled skip step equals the eager one."""

from dataclasses import replace

import pytest
import torch

from tapstudy.core.compiled import CompiledStep
from tapstudy.policies.base import RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy
from tests.table import each_row


def features(seed, batch=2):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(batch, 6, 5, generator=generator)
    return base + 0.1 * torch.randn(batch, 6, 5, generator=generator), torch.randn(batch, 6, 5, generator=generator)


def run(policy, steps=12):
    """What the policy predicts along a trajectory of its own."""
    policy.begin(RunInfo(num_steps=steps))
    for step in range(steps):
        probe, residual = features(step)
        if policy.wants_full(step):
            policy.observe(step, probe, residual)
        else:
            yield policy.predict(step, probe)


@pytest.mark.slow  # compiling takes seconds
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize(
    ("distance", "granularity", "probe_dtype"), [("cosine", "token", None), ("l2", "step", torch.bfloat16)]
)
def test_equals_the_eager_step_and_compiles_once(distance, granularity, probe_dtype):
    config = TAPConfig(interval=5, distance=distance, granularity=granularity, probe_dtype=probe_dtype)
    torch.compiler.reset()
    counts = torch._dynamo.utils.counters["stats"]
    before = counts["unique_graphs"]
    compiled = TAPPolicy(config, compile=True)
    with torch.no_grad():
        for found, expected in zip(run(compiled.fresh()), run(TAPPolicy(config)), strict=True):
            assert torch.equal(found.choice, expected.choice)
            torch.testing.assert_close(found.residual, expected.residual, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(found.proxy_loss, expected.proxy_loss, rtol=2e-6, atol=0)
    assert compiled.compiled._compiled is not None
    assert counts["unique_graphs"] - before == 1


def test_goes_on_without_a_compiler():
    policy = TAPPolicy(TAPConfig(interval=5), compile=True)

    def fail(*_args, **_kwargs):
        raise RuntimeError("no compiler\nand more")

    policy.compiled._compiled = fail
    with pytest.warns(RuntimeWarning, match=r"compile=True failed \(no compiler\), going on without it"):
        found = [*run(policy)]
    for one, expected in zip(found, run(TAPPolicy(TAPConfig(interval=5))), strict=True):
        assert torch.equal(one.residual, expected.residual)


@each_row("wrong", [{"distance": "l1"}, {"granularity": "region"}])
def test_what_makes_no_graph(wrong):
    with pytest.raises(ValueError, match="leave compile out"):
        CompiledStep(**wrong)


@each_row(("distance", "dtype"), [("cosine", torch.bfloat16), ("l1", torch.float16)])
def test_probes_stored_in_half_precision(distance, dtype):
    """The same as if the model had shown rounded probes at full steps, and exact ones in between."""
    config = TAPConfig(interval=5, distance=distance)
    policy, rounded = TAPPolicy(replace(config, probe_dtype=dtype)), TAPPolicy(config)
    for one in (policy, rounded):
        one.begin(RunInfo(num_steps=12))
    for step in range(12):
        probe, residual = features(step)
        if policy.wants_full(step):
            policy.observe(step, probe, residual)
            rounded.observe(step, probe.to(dtype).float(), residual)
        else:
            found, expected = policy.predict(step, probe), rounded.predict(step, probe)
            assert torch.equal(found.choice, expected.choice)
            assert torch.equal(found.residual, expected.residual)
            assert torch.equal(found.proxy_loss, expected.proxy_loss)
    assert policy.cache_bytes == 3 * 2 * 6 * 5 * (2 + 4)
