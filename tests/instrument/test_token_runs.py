"""Passes in which some tokens of the image run: on models with text in their attention and without."""

import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.instrument.flops import count_flops
from tapstudy.instrument.token_runs import SPECS
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.blocks.dbcache import DBCachePolicy
from tapstudy.policies.blocks.modules import ModulesPolicy
from tapstudy.policies.blocks.pab import PABPolicy
from tapstudy.policies.decision import SKIP, Decision
from tapstudy.policies.tap import TAPPolicy
from tapstudy.policies.tokens.hsa import HSAPolicy
from tapstudy.policies.tokens.ras import RASPolicy
from tapstudy.policies.tokens.tap_tokens import TAPTokensPolicy
from tapstudy.policies.tokens.toca import ToCaPolicy
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import make

SITES = ["hidden", "tail", "latent", "output"]


class Some(Policy):
    """Full at step 0; then these tokens run, and for the others the true residual of step 0 times `factor`."""

    runs_tokens = True

    def __init__(self, tokens, *, site="hidden", factor=1.0, kind=None, depth=0):
        self.tokens, self.residual_site, self.factor = torch.tensor(tokens), site, factor
        if kind is not None:
            self.probe_kind, self.probe_depth, self.needs_probe, self.decides_by_probe = kind, depth, True, True
        self.log = []

    def wants_full(self, step):
        return step == 0

    def decision(self, step, probe=None):
        assert (probe is None) == (not self.decides_by_probe)
        return Decision(tokens=self.tokens) if len(self.tokens) else SKIP

    def observe(self, step, probe, residual):
        self.residual = residual.clone()

    def predict(self, step, probe, truth=None):
        return Prediction(self.factor * self.residual)

    def ran(self, step, decision, residual):
        self.log.append((step, decision.tokens.tolist(), residual.clone()))


def policy_of(handle):
    (instrument,) = handle._instruments.values()
    (run,) = instrument.runs.values()
    return run.policy


@pytest.mark.parametrize(
    ("name", "site"),
    [
        *(("Flux", site) for site in SITES),
        ("DiT", "latent"), ("PixArt", "hidden"), ("SD3.5", "tail"), ("Wan", "output"),
    ],
)  # fmt: skip
def test_tokens_that_run_get_what_they_had(name, site):
    """In the very same call keys and values that are kept are true: so is what comes of any tokens."""
    tiny = make(name)
    plain, chosen = tiny(), [0, 3, 4, tiny.tokens - 1]
    before = {module: set(vars(module)) for module in tiny.model.modules()}
    with apply_policy(tiny.model, Some(chosen, site=site, factor=0.0)) as handle:
        assert torch.equal(tiny(), plain)
        tiny()
        policy = policy_of(handle)
        ((step, ran, residual),) = policy.log
        assert (step, ran, handle.summary().mask) == (1, chosen, "Fp")
        assert relative_error(residual[:, chosen], policy.residual[:, chosen]) < 1e-5
        others = [token for token in range(tiny.tokens) if token not in chosen]
        assert not residual[:, others].any()
    with apply_policy(tiny.model, Some(chosen, site=site)):
        assert torch.equal(tiny(), plain)
        assert relative_error(tiny(), plain) < 1e-5
    assert torch.equal(tiny(), plain)
    assert {module: set(vars(module)) for module in tiny.model.modules()} == before


@pytest.mark.parametrize(
    ("name", "kind", "depth"),
    [
        ("DiT", "modulated", 0), ("Flux", "modulated", 1), ("SD3", "stream", 1), ("Wan", "latent", 0),
    ],
)  # fmt: skip
def test_tokens_that_the_probe_names(name, kind, depth):
    """The pass goes on with them from where the probe was taken."""
    tiny, chosen = make(name), [1, 2, 7]
    plain = tiny()
    with apply_policy(tiny.model, Some(chosen, kind=kind, depth=depth)) as handle:
        assert torch.equal(tiny(), plain)
        assert relative_error(tiny(), plain) < 1e-5
        assert handle.summary().mask == "Fp"
        policy = policy_of(handle)
        assert relative_error(policy.log[0][2][:, chosen], policy.residual[:, chosen]) < 1e-5


@pytest.mark.parametrize("name", ["DiT", "Flux", "PixArt", "SD3.5", "Wan"])
def test_all_tokens_are_a_full_pass(name):
    """On a path: then nothing that is kept is read."""
    tiny = make(name)
    with apply_policy(tiny.model, Some([*range(tiny.tokens)])):
        for step in range(3):
            ours = tiny(**tiny.at(step, 3))
    assert relative_error(ours, tiny(**tiny.at(2, 3))) < 1e-5


@pytest.mark.parametrize("name", ["DiT", "Flux", "Wan"])
def test_other_tokens_do_not_run(name):
    """Products with weights inside the blocks cost what the share of the tokens costs, and the text."""
    tiny = make(name)

    with apply_policy(tiny.model, Some([2])):
        full, one = count_flops(tiny), count_flops(tiny)
    with apply_policy(tiny.model, Some([2], kind="modulated")):
        tiny()
        probed = count_flops(tiny)
    with apply_policy(tiny.model, Some([])):
        tiny()
        none = count_flops(tiny)
    assert none < one < full
    assert one <= probed < one + (full - one) / 10  # the probed block begins anew, with its modulation
    text = 5 if name == "Flux" else 0
    if name == "DiT":  # no text, no cross-attention: modulation aside, a block costs as many tokens as run
        blocks = 3 * 2 * 2 * (4 * 16 * 16 + 2 * 16 * 64 + 2 * 16 * 16)  # layers, batch, multiply-add
        assert full - one == (tiny.tokens - 1) * blocks
    assert (one - none) / (full - none) < (1 + text + 8) / (tiny.tokens + text)


def test_gradients_and_modes():
    for mode in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        tiny = make("SD3")
        with apply_policy(tiny.model, Some([0, 5])) as handle, mode():
            outputs = [tiny.model(**tiny.at(step, 3), return_dict=False)[0] for step in range(3)]
            if mode is torch.enable_grad:
                outputs[-1].square().sum().backward()
                assert tiny.model.transformer_blocks[1].ff.net[2].weight.grad.any()
            assert handle.summary().mask == "Fpp"
            assert handle.summary().contexts[0].cache_bytes > 0


def test_refusals():
    with pytest.raises(ValueError, match="nobody knows how those of SanaTransformer2DModel"):
        apply_policy(make("Sana").model, Some([0]))
    assert all(hasattr(__import__("diffusers"), name) for name in SPECS)
    tiny = make("Wan2.2")
    with apply_policy(tiny.model, Some([0])):
        tiny()
        with pytest.raises(RuntimeError, match="one timestep for all tokens"):
            tiny()
    tiny = make("DiT")
    with apply_policy(tiny.model, Some([99])):
        tiny()
        with pytest.raises(ValueError, match="below 16"):
            tiny()


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("Wan", TAPTokensPolicy(0.25, TAPConfig(interval=3, warmup_steps=2))),
        ("SD3", TAPTokensPolicy(0.25, TAPConfig(interval=3, warmup_steps=2), names="error", every=2)),
        ("SD3", RASPolicy(0.5, dense=2, resets=())),
        ("SD3", HSAPolicy((1, 2), dense=2)),
        ("Wan", ToCaPolicy(0.25, TAPConfig(interval=3, warmup_steps=1))),
        ("SD3", ModulesPolicy(1, TAPConfig(interval=3, warmup_steps=1))),
        ("SD3", DBCachePolicy(0.9, first=1, last=1, warmup_steps=2)),
        ("Wan", PABPolicy(2, 3, window=(0, 1))),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_summary_counts_what_ran(name, policy):
    """Without values, the same FLOPs as the run itself, but for the products that TAP makes beside the model."""
    tiny = make(name)
    full = count_flops(lambda: tiny(**tiny.at(0, 6)))
    with apply_policy(tiny.model, policy) as handle:
        spent = count_flops(lambda: [tiny(**tiny.at(step, 6)) for step in range(6)])
        summary = handle.summary()
        assert summary.flops_note is None
        assert "p" in summary.mask
        assert summary.flops_ratio == pytest.approx(
            6 * full / spent, rel=0.05 if isinstance(policy, TAPPolicy) else 1e-6
        )
