"""Policies that leave out blocks and modules: decisions and values by hand, and beside the packages they come from."""

import warnings

import pytest
import torch
from torch import nn

from tapstudy import TAPConfig, apply_policy
from tapstudy.policies.base import RunInfo
from tapstudy.policies.blocks.bac import ModuleTablePolicy, SimilarityPolicy, refresh_steps, table_of
from tapstudy.policies.blocks.dbcache import DBCachePolicy
from tapstudy.policies.blocks.delta_dit import DeltaDiTPolicy
from tapstudy.policies.blocks.groups import GroupsPolicy
from tapstudy.policies.blocks.modules import ModulesPolicy
from tapstudy.policies.blocks.pab import PABPolicy
from tapstudy.policies.blocks.temporal_delta import TemporalDeltaPolicy
from tapstudy.policies.decision import Decision, Layout, Part, check_decision
from tapstudy.predictors.hermite import HermiteFamily
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import make
from tests.policies.loop import tokens

BLOCKS = 6
LAYOUT = Layout((("attention", "feed_forward"),) * BLOCKS, (0,) * BLOCKS)
SCHEDULE = TAPConfig(interval=3, warmup_steps=1)


class Dummy:
    """A model of six blocks: block b, or a module of it, adds (b + 1) * 10 ^ i at step i, and a group the sum."""

    def __init__(self, policy, steps, probe=lambda step: None):
        self.policy, self.steps, self.probe = policy, steps, probe
        policy.begin(RunInfo(steps, layout=LAYOUT))

    def true(self, part, step):
        return (tokens(float(sum(range(part.first + 1, part.end + 1))) * 10**step), None)

    def run(self):
        """What was left out at every step, and what was handed out for it."""
        policy, left, given = self.policy, [], {}
        for step in range(self.steps):
            probe = self.probe(step)
            full = policy.wants_full(step) or (policy.decides_by_probe and policy.wants_full_given(step, probe))
            decision = Decision() if full else policy.decision(step, probe)
            if not full:
                check_decision(decision, "test", parts=policy.watched, tokens=1, apart=False, models=0)
            for part in policy.watched:
                if part in decision.parts:
                    given[step, part] = policy.predict_part(step, part, 0)
                elif not any(part.meets(other) for other in decision.parts):
                    policy.observe_part(step, part, 0, self.true(part, step))
            policy.observe(step, probe, tokens(0.0)) if full else policy.ran(step, decision, None)
            left.append(tuple(decision.parts))
        return left, given


def test_layout():
    assert LAYOUT.groups(1, 4) == (Part("block", 1, 4),)
    two = Layout((("attention", "feed_forward"), ("attention", "joint")), (0, 1))
    assert two.groups(0, 2) == (Part("block", 0, 1), Part("block", 1, 2))
    assert two.branches() == (Part("attention", 0, 1), Part("feed_forward", 0, 1), Part("joint", 1, 2))
    with pytest.raises(ValueError, match="no group of blocks"):
        LAYOUT.groups(4, 7)


def test_decisions_are_checked():
    block, other = Part("block", 0, 2), Part("block", 1, 3)
    given = {"parts": (block, other), "tokens": 4, "apart": True, "models": 1}
    check_decision(Decision({block: None}), "here", **given)
    check_decision(Decision(tokens=torch.tensor([0, 3])), "here", **given)
    for wrong, message in (
        (Decision({Part("block", 5, 6): None}), "does not list"),
        (Decision({block: None, other: None}), "overlap"),
        (Decision({block: None}, tokens=torch.tensor([0])), "one of these kinds"),
        (Decision(model=1), "has 1 others"),
        (Decision(tokens=torch.tensor([3, 0])), "sorted"),
        (Decision(tokens=torch.tensor([0, 4])), "below 4"),
        (Decision(tokens=torch.tensor([0.0])), "int64"),
        (Decision({block: torch.tensor([0])}), "only feed-forward layers"),
    ):
        with pytest.raises(ValueError, match=message):
            check_decision(wrong, "here", **given)
    with pytest.raises(ValueError, match="does not set runs_tokens"):
        check_decision(Decision(tokens=torch.tensor([0])), "here", **{**given, "apart": False})
    with pytest.raises(TypeError, match="must return a Decision"):
        check_decision("skip", "here", **given)


def test_delta_dit():
    """Full at 0, 3, 6: the last two blocks are left out while more than half of the eight steps remain."""
    policy = DeltaDiTPolicy(SCHEDULE, group=2, detail=0.5)
    left, given = Dummy(policy, 8).run()
    back, front = Part("block", 4, 6), Part("block", 0, 2)
    assert left == [(), (back,), (back,), (), (front,), (front,), (), (front,)]
    assert {step: float(value[0]) for (step, _), value in given.items()} == {
        1: 11, 2: 11, 4: 3000, 5: 3000, 7: 3000000,
    }  # fmt: skip
    always = DeltaDiTPolicy(SCHEDULE, group=2, detail=0)
    assert Dummy(always, 8).run()[0][7] == (back,)
    with pytest.raises(ValueError, match="number of sampling steps"):
        policy.begin(RunInfo(layout=LAYOUT))
    with pytest.raises(ValueError, match="group must be from 1 to 5"):
        DeltaDiTPolicy(SCHEDULE, group=6).begin(RunInfo(8, layout=LAYOUT))


def test_groups():
    """ProfilingDiT: groups known beforehand, six full steps at the beginning, and every sixth after that."""
    policy = GroupsPolicy(((1, 2), (3, 5)))
    left, given = Dummy(policy, 18).run()
    both = (Part("block", 1, 2), Part("block", 3, 5))
    assert [bool(parts) for parts in left] == [False] * 6 + [True] * 5 + [False] + [True] * 5 + [False]
    assert left[6] == both
    assert float(given[10, both[1]][0]) == 9e5
    with pytest.raises(ValueError, match="overlap"):
        GroupsPolicy(((1, 3), (2, 5)))


def test_modules_are_taylorseer():
    """Order 1 between full steps 0, 3, 6: F + (F - F') k / 3, module by module."""
    policy = ModulesPolicy(1, SCHEDULE)
    left, given = Dummy(policy, 9).run()
    assert [len(parts) for parts in left] == [0, 12, 12, 0, 12, 12, 0, 12, 12]
    part = Part("feed_forward", 2, 3)
    values = {step: float(value[0]) for (step, found), value in given.items() if found == part}
    slope = (3e3 - 3) / 3
    assert values == pytest.approx({1: 3, 2: 3, 4: 3e3 + slope, 5: 3e3 + 2 * slope, 7: 3e6 + (3e6 - 3e3) / 3,
                                    8: 3e6 + 2 * (3e6 - 3e3) / 3})  # fmt: skip
    hermite = ModulesPolicy(config=SCHEDULE, family=HermiteFamily(orders=(1,)))
    assert float(Dummy(hermite, 9).run()[1][4, part][0]) == pytest.approx(3e3 + slope / 2)


def test_pab():
    """Twelve steps: the window is steps 3 to 10; attention at even ones, cross-attention (none here) at every third."""
    left, given = Dummy(PABPolicy(2, 3), 12).run()
    assert [len(parts) for parts in left] == [0, 0, 0, 6, 0, 6, 0, 6, 0, 6, 0, 0]
    assert float(given[5, Part("attention", 1, 2)][0]) == 2e4
    cross = Layout((("attention", "cross_attention", "feed_forward"),), (0,))
    policy = PABPolicy(2, 3, window=(0, 1))
    policy.begin(RunInfo(layout=cross))
    assert [[part.site for part in policy.left_out(step)] for step in range(4)] == [
        [], ["attention", "cross_attention"], ["cross_attention"], ["attention"],
    ]  # fmt: skip


def test_dbcache():
    """The first two of six blocks add 1, 1.05, 1.2, 1.21, 1.5: at 0.1, steps 2 and 4 have changed since the last."""
    added = [1.0, 1.05, 1.2, 1.21, 1.5]

    def probe(step):
        return torch.stack([tokens(7.0), tokens(7.0 + added[step])])

    policy = DBCachePolicy(0.1, first=2, last=1, warmup_steps=1)
    left, given = Dummy(policy, 5, probe).run()
    middle = Part("block", 2, 5)
    assert left == [(), (middle,), (), (middle,), ()]
    assert {step: float(value[0]) for (step, _), value in given.items()} == {1: 12, 3: 1200}
    limited = DBCachePolicy(9, first=2, last=1, warmup_steps=1, max_skips=2)
    assert [bool(parts) for parts in Dummy(limited, 5, probe).run()[0]] == [False, True, True, False, True]
    taylor = DBCachePolicy(9, first=2, last=1, warmup_steps=3, order=1)
    assert float(Dummy(taylor, 5, probe).run()[1][4, middle][0]) == pytest.approx(1200 + 2 * 1080)
    with pytest.raises(ValueError, match="leave no block between"):
        DBCachePolicy(first=4, last=2).begin(RunInfo(layout=LAYOUT))
    with pytest.raises(ValueError, match="max_skips must be at least 0, got -1"):
        DBCachePolicy(max_skips=-1)


def test_temporal_delta():
    """Every block changes by 9 from step to step (tenfold growth): 18 allows for two steps.

    After a skip the change is 99, so that a block runs twice before it is left out again.
    """
    for threshold, expected in ((8, [0] * 6), (9, [0, 0, 6, 0, 0, 6]), (18, [0, 0, 6, 6, 0, 0])):
        policy = TemporalDeltaPolicy(threshold, warmup_steps=2)
        assert [len(parts) for parts in Dummy(policy, 6).run()[0]] == expected, threshold


def test_bac_by_hand():
    """Three refreshes of six steps: the first, and where neighbours are least alike."""
    alike = [0.9, 0.1, 0.8, 0.2, 0.7]  # of steps 1 to 5 with the one before
    assert refresh_steps(alike, 3) == (0, 2, 4)
    table = table_of(
        {Part("attention", 0, 1): alike, Part("feed_forward", 0, 1): alike[::-1], Part("feed_forward", 1, 2): alike},
        refreshes=2, errors={0: 2.0, 1: 1.0}, upstream=1,
    )  # fmt: skip
    assert table == {
        Part("attention", 0, 1): (0, 2), Part("feed_forward", 0, 1): (0, 2, 4), Part("feed_forward", 1, 2): (0, 2),
    }  # fmt: skip


def test_bac_measures_and_runs():
    """Similarities come from a model in full; the table they give is what runs."""
    tiny, policy = make("SD3"), SimilarityPolicy()
    outputs = {}
    handles = [
        block.ff.register_forward_hook(lambda module, given, output, index=index: outputs.setdefault(index, []).append(
            output.double()))
        for index, block in enumerate(tiny.model.transformer_blocks)
    ]  # fmt: skip
    with apply_policy(tiny.model, policy):
        for step in range(5):
            tiny(**tiny.at(step, 5))
    for handle in handles:
        handle.remove()
    part = Part("feed_forward", 1, 2)
    now, before = outputs[1][3], outputs[1][2]
    expected = nn.functional.cosine_similarity(now, before, dim=-1).mean()
    assert policy.similarities()[part][2] == pytest.approx(float(expected), rel=1e-5)
    table = table_of(policy.similarities(), refreshes=2)
    with apply_policy(tiny.model, ModuleTablePolicy(table)) as handle:
        for step in range(5):
            tiny(**tiny.at(step, 5))
        assert "p" in handle.summary().mask


# Beside the packages


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "settings"), [
    ("DiT", {"first": 1, "last": 0}), ("DiT", {"first": 1, "last": 1, "order": 1}),
    ("Wan", {"first": 1, "last": 1}), ("Flux", {"first": 2, "last": 1}),
])  # fmt: skip
def test_dbcache_is_cache_dits(name, settings):
    """Same images, so the same steps: a tiny model shows any other mask at once.

    cache-dit's calibrator takes no differences up to its second step, and a warm-up of four leaves that behind.
    """
    pytest.importorskip("cache_dit")
    from tapstudy.bench.speed import third_party

    steps, warmup = 12, 4
    threshold = {"DiT": 0.25, "Wan": 0.15, "Flux": 0.4}[name]
    order = settings.get("order", 0)

    def sample():
        return torch.stack([tiny(**tiny.at(step, steps)) for step in range(steps)])

    tiny = make(name)
    peer_settings = {
        "Fn_compute_blocks": settings["first"], "Bn_compute_blocks": settings["last"], "max_warmup_steps": warmup,
        "residual_diff_threshold": threshold, "enable_separate_cfg": False,
    }  # fmt: skip
    with third_party.dbcache(tiny.model, taylor_order=order or None, **peer_settings):
        theirs = sample()
    policy = DBCachePolicy(threshold, warmup_steps=warmup, **settings)
    with apply_policy(tiny.model, policy) as handle:
        ours = sample()
    assert {*handle.summary().mask[warmup:]} == {"F", "p"}
    assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_pab_is_diffusers(name):
    from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

    steps, now = 10, [0]
    tiny = make(name)

    def sample():
        outputs = []
        for step in range(steps):
            now[0] = 1000 * (1 - step / steps)
            outputs.append(tiny(**tiny.at(step, steps)))
        return torch.stack(outputs)

    with apply_policy(tiny.model, PABPolicy(3, 2, window=(0, 1))) as handle:
        ours = sample()
    assert handle.summary().mask == ("FpppppFppp" if name == "Wan" else "FppFppFppF")
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=3, spatial_attention_timestep_skip_range=(-1, 1001),
        cross_attention_block_skip_range=2, cross_attention_timestep_skip_range=(-1, 1001),
        spatial_attention_block_identifiers=("blocks", "transformer_blocks", "single_transformer_blocks"),
        cross_attention_block_identifiers=("blocks", "transformer_blocks"),
        current_timestep_callback=lambda: now[0],
    )  # fmt: skip
    apply_pyramid_attention_broadcast(tiny.model, config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = sample()
    assert relative_error(ours, theirs) < 1e-6
