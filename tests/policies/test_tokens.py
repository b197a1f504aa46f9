"""Policies that run some tokens: which, and what comes of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from tapstudy import TAPConfig, apply_policy
from tapstudy.policies.base import RunInfo
from tapstudy.policies.decision import SKIP, Decision, Layout, Part
from tapstudy.policies.tap import TAPPolicy
from tapstudy.policies.tokens.hsa import HSAPolicy
from tapstudy.policies.tokens.ras import RASPolicy
from tapstudy.policies.tokens.tap_tokens import TAPTokensPolicy
from tapstudy.policies.tokens.toca import ToCaPolicy
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import make

CONFIG = TAPConfig(interval=4, warmup_steps=2, orders=(0,), shifts=(0,), distance="l2")
STEPS = 8


def features(*rows):
    """One channel per value, one token per row: (1, N, D)."""
    return torch.tensor([[[float(value) for value in (row if isinstance(row, tuple) else (row,))] for row in rows]])


def test_tap_runs_the_tokens_of_the_largest_proxy_loss():
    """Reuse of the probe (10, 10, 10) is off by 1, 5 and 2: with a share of two thirds tokens 1 and 2 run."""
    policy = TAPTokensPolicy(0.67, CONFIG)
    policy.begin(RunInfo(8))
    for step in range(2):
        policy.observe(step, features(10, 10, 10), features(1, 1, 1))
    assert not policy.wants_full(2)
    assert not policy.wants_full_given(2, features(11, 15, 12))
    assert policy.decision(2, features(11, 15, 12)).tokens.tolist() == [1, 2]
    assert TAPTokensPolicy(0, CONFIG).share == 0
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        TAPTokensPolicy(0.5, CONFIG, every=0)
    policy.share = 0
    assert policy.decision(2, features(11, 15, 12)) is SKIP
    policy.share, policy.every = 0.34, 2
    assert policy.decision(2, features(11, 15, 12)) is SKIP
    assert policy.decision(3, features(11, 15, 12)).tokens.tolist() == [1]


def test_tap_runs_the_tokens_that_were_off_at_the_last_full_step():
    """Reuse of (1, 1, 1) for (1.1, 4, 2) is off by 1/11, 3/4 and 1/2."""
    policy = TAPTokensPolicy(0.34, CONFIG, names="error")
    policy.begin(RunInfo(8))
    policy.observe(0, features(10, 10, 10), features(1, 1, 1))
    policy.make_room()
    policy.observe(1, features(10, 10, 10), features(1.1, 4, 2))
    assert policy.decision(2).tokens.tolist() == [1]
    policy.share = 0.67
    assert policy.decision(2).tokens.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("name", "names"),
    [("SD3", "random"), ("DiT", "probe"), ("Flux", "error"), ("Wan", "probe")],
)
def test_tap_with_tokens_in_a_model(name, names):
    """None of them: TAP. All of them: the model. Some: nearer to it than TAP."""
    config = replace(CONFIG, orders=(0, 1), shifts=(0, 1))

    def sample(policy):
        tiny = make(name)
        with apply_policy(tiny.model, policy) as handle:
            outputs = torch.stack([tiny(**tiny.at(step, STEPS)) for step in range(STEPS)])
        return outputs, handle.summary().mask

    tiny = make(name)
    exact = torch.stack([tiny(**tiny.at(step, STEPS)) for step in range(STEPS)])
    tap, mask = sample(TAPPolicy(config))
    none, of_none = sample(TAPTokensPolicy(0, config, names=names))
    assert (of_none, mask) == (mask, "FF...F..")
    assert torch.equal(none, tap)
    half, of_half = sample(TAPTokensPolicy(0.5, config, names=names))
    assert of_half == "FFpppFpp"
    every, _ = sample(TAPTokensPolicy(1, config, names=names))
    assert relative_error(every, exact) < 1e-5
    assert (half - exact).norm() < (tap - exact).norm()


def test_ras_by_hand():
    """Deviations 1, 4, 2: with half of the tokens the flattest run, and those left out come back."""
    policy = RASPolicy(0.34, dense=1, resets=(), starvation=1.0)
    policy.begin(RunInfo(8))
    output = features((-1, 1), (-4, 4), (-2, 2))
    policy.observe(0, None, output)
    chosen = []
    for step in range(1, 5):
        assert not policy.wants_full(step)
        decision = policy.decision(step)
        assert torch.equal(policy.predict(step, None).residual, output)
        policy.ran(step, decision, output)
        chosen += decision.tokens.tolist()
    # scores 1, 1/4, 1/2; then 1, e/4, e/2; then e, e^2/4, 1/2; then 1, e^3/4, e/2
    assert chosen == [0, 2, 0, 1]
    inverse = RASPolicy(0.34, dense=1, resets=(0.5,), inverse=True)
    inverse.begin(RunInfo(8))
    inverse.observe(0, None, output)
    assert inverse.decision(1).tokens.tolist() == [1]
    assert [inverse.wants_full(step) for step in range(1, 8)] == [False] * 3 + [True] + [False] * 3


@pytest.mark.parametrize("name", ["DiT", "Flux"])
def test_ras_in_a_model(name):
    """At the steps between, tokens that do not run have the output of the step before, to the last bit."""
    tiny = make(name)
    with apply_policy(tiny.model, RASPolicy(0.5, dense=2, resets=())) as handle:
        outputs = [tiny(**tiny.at(step, 5)) for step in range(5)]
    assert handle.summary().mask == "FFppp"
    same = (outputs[4] == outputs[3]).float().mean()
    assert abs(float(same) - 0.5) < 0.05
    everything = make(name)
    with apply_policy(everything.model, RASPolicy(1.0, dense=2, resets=())):
        last = [everything(**everything.at(step, 5)) for step in range(5)][-1]
    assert relative_error(last, tiny(**tiny.at(4, 5))) < 1e-5


def test_hsa_by_hand():
    """Velocities 1, 2, 4, 8 that move by 1/2, 2, 1/4, 2 change by 1/2, 1, 1/16, 1/4: in falling order 1, 0, 3, 2."""
    policy = HSAPolicy((2, 3, 4), (0.25, 0.5, 0.25), dense=3)
    policy.begin(RunInfo(16))
    before, now = features(1, 2, 4, 8), features(1.5, 4, 4.25, 6)
    for step, output in enumerate((features(9, 9, 9, 9), before, now)):
        assert policy.wants_full(step)
        policy.observe(step, None, output)
    due = {2: [1], 3: [0, 3], 4: [1, 2], 6: [0, 1, 3], 8: [1, 2], 9: [0, 3], 10: [1]}  # by steps after the last dense
    for step in range(3, 14):
        assert policy.wants_full(step) == (step - 2 == 12)
        decision = policy.decision(step)
        assert (decision.tokens.tolist() if decision is not SKIP else None) == due.get(step - 2)
        assert torch.equal(policy.predict(step, None).residual, now)
    policy.ran(4, Decision(tokens=torch.tensor([1])), before)
    assert torch.equal(policy.predict(5, None).residual, before)
    with pytest.raises(ValueError, match="shares must add up to 1, one for each of the 2 divisors"):
        HSAPolicy((1, 2), (0.5,))
    with pytest.raises(ValueError, match="shares must add up to 1"):
        HSAPolicy(())
    with pytest.raises(ValueError, match="divisors must be at least 1, got 0"):
        HSAPolicy((1, 0))


@pytest.mark.parametrize("name", ["SD3", "Wan"])
def test_hsa_in_a_model(name):
    """Half of the tokens run at every second step behind the dense ones, all at every fourth as in the model."""
    tiny = make(name)
    with apply_policy(tiny.model, HSAPolicy((2, 4), dense=2)) as handle:
        outputs = [tiny(**tiny.at(step, 8)) for step in range(8)]
    assert handle.summary().mask == "FF.p.F.p"
    exact = make(name)(**tiny.at(5, 8))
    assert torch.equal(outputs[5], exact)
    assert torch.equal(outputs[4], outputs[3])
    for step in (3, 7):
        same = (outputs[step] == outputs[step - 1]).float().mean()
        assert abs(float(same) - 0.5) < 0.05


def test_toca_is_refused_where_a_layer_holds_more_than_the_image():
    tiny = make("CogVideoX")
    with apply_policy(tiny.model, ToCaPolicy(0.3, TAPConfig(interval=3, warmup_steps=1))):
        tiny()
        with pytest.raises(RuntimeError, match="takes 23 tokens and the image has 18, so single ones cannot run there"):
            tiny()


def test_toca_by_hand():
    """Norms 3, 1, 2, 4 over 4; one of four tokens runs, and three steps without running add 3/4."""
    part = Part("feed_forward", 0, 1)
    layout = Layout((("attention", "feed_forward"),), (0,))
    policy = ToCaPolicy(0.25, TAPConfig(interval=4, warmup_steps=1), stale=1.0, bonus=0)
    policy.begin(RunInfo(8, (1, 2, 2), layout=layout))
    policy.observe_part(0, Part("attention", 0, 1), 0, features(0, 0, 0, 0))
    policy.observe_part(0, part, 0, features(3, 1, 2, 4))
    policy.observe(0, None, features(0, 0, 0, 0))
    chosen = []
    for step in range(1, 4):
        decision = policy.decision(step)
        assert decision.parts[Part("attention", 0, 1)] is None
        policy.ran(step, decision, None)
        chosen += decision.parts[part].tolist()
    # 4/4, then 3/4 + 2/4 against 4/4 + 1/4, which is a tie for the first; then the other
    assert chosen[0] == 3
    assert {*chosen[1:]} == {0, 3}
    duca = ToCaPolicy(0.25, TAPConfig(interval=4, warmup_steps=1), every=2)
    duca.begin(RunInfo(8, (1, 2, 2), layout=layout))
    duca.observe_part(0, part, 0, features(3, 1, 2, 4))
    duca.observe(0, None, features(0, 0, 0, 0))
    assert [duca.decision(step).parts[part] is None for step in range(1, 4)] == [True, False, True]


@pytest.mark.parametrize(("name", "score"), [("DiT", "norm"), ("SD3", "random"), ("Wan", "norm")])
def test_toca_in_a_model(name, score):
    """A feed-forward layer sees as many tokens as run, and what it gives them is what it gives in a full pass."""
    tiny, sizes, exact = make(name), [], {}
    layer = tiny.model.get_submodule("blocks" if name == "Wan" else "transformer_blocks")[0]
    layer = layer.ffn if name == "Wan" else layer.ff
    first = next(module for module in layer.modules() if isinstance(module, nn.Linear))
    watch = first.register_forward_hook(lambda module, given, output: sizes.append(given[0].shape[1]))
    tiny()
    assert sizes.pop() == tiny.tokens
    exact["plain"] = tiny()
    sizes.clear()
    policy = ToCaPolicy(0.25, TAPConfig(interval=3, warmup_steps=1), score=score)
    with apply_policy(tiny.model, policy) as handle:
        outputs = [tiny() for _ in range(4)]
    watch.remove()
    assert handle.summary().mask == "FppF"
    few = round(0.25 * tiny.tokens)
    assert sizes == [tiny.tokens, few, few, tiny.tokens]
    assert all(relative_error(output, exact["plain"]) < 1e-5 for output in outputs)
