"""Blocks, groups of blocks and modules that a policy leaves out: on models with one stream of tokens and with two."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tapstudy import TAPConfig, apply_policy
from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.parts import layout_of, modules_of
from tapstudy.policies.blocks.dbcache import DBCachePolicy
from tapstudy.policies.blocks.delta_dit import DeltaDiTPolicy
from tapstudy.policies.blocks.groups import GroupsPolicy
from tapstudy.policies.blocks.modules import ModulesPolicy
from tapstudy.policies.blocks.pab import PABPolicy
from tapstudy.policies.blocks.temporal_delta import TemporalDeltaPolicy
from tapstudy.policies.parts import PartsPolicy
from tapstudy.policies.tokens.hsa import HSAPolicy
from tapstudy.policies.tokens.ras import RASPolicy
from tapstudy.policies.tokens.tap_tokens import TAPTokensPolicy
from tapstudy.policies.tokens.toca import ToCaPolicy
from tapstudy.predictors.taylor import TaylorFamily
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import CLASSES, make

NAMES = ["DiT", "Flux", "SD3"]  # one stream, two stacks, two streams
OTHERS = {
    "SD3.5": "branches", "Wan": "branches", "Flux2": "branches", "HunyuanVideo": "end", "PixArt": "branches",
    "QwenImage": "end",
}  # fmt: skip
CUTS = {
    "front": lambda layout: layout.groups(0, 2),
    "middle": lambda layout: layout.groups(1, len(layout) - 1),
    "end": lambda layout: layout.groups(len(layout) - 1, len(layout)),
    "every block": lambda layout: tuple(part for i in range(len(layout)) for part in layout.groups(i, i + 1)),
    "branches": lambda layout: layout.branches(),
    "attention": lambda layout: layout.modules("attention"),
}


class Cut(PartsPolicy):
    """Full at the first `full` steps; then these parts are left out."""

    def __init__(self, cut, full=1, family=None):
        super().__init__(family)
        self.cut, self.full = cut, full

    def parts(self, layout):
        return self.cut(layout)

    def left_out(self, step):
        return () if step < self.full else self.watched


def expected_idle(model, parts):
    """Modules with weights that belong to what is left out, found without the instrument's hooks."""
    adapter = find_adapter(model)
    blocks = [block for block, _ in adapter.modules(model)[0]]
    roots = []
    for part in parts:
        if part.site == "block":
            roots += blocks[part.first : part.end]
        else:
            found = modules_of(blocks[part.first], adapter)[part.site]
            roots += [*found.answering, *found.silent]
    read_by_tail = {*blocks[0].norm1.emb.modules()} if type(model).__name__.startswith("DiT") else set()
    return {leaf for root in roots for leaf in root.modules() if isinstance(leaf, nn.Linear)} - read_by_tail


class Linears(TorchFunctionMode):
    """Watches which weights are multiplied by."""

    def __init__(self):
        super().__init__()
        self.weights = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            self.weights.add(id(args[1]))
        return function(*args, **(kwargs or {}))


def ran(model, call):
    """Linear layers that ran."""
    with Linears() as linears:
        output = call()
    return output, {
        module for module in model.modules() if isinstance(module, nn.Linear) and id(module.weight) in linears.weights
    }


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        *(("Flux", cut) for cut in CUTS),
        ("DiT", "front"), ("DiT", "branches"), ("SD3", "middle"), ("SD3", "attention"), ("SD3", "branches"),
        *OTHERS.items(),
    ],
)  # fmt: skip
def test_what_is_left_out_does_not_run(name, cut):
    """Given the parts of the very same call, the output is the same; all else runs; nothing is left behind."""
    tiny = make(name)
    plain, all_of_them = ran(tiny.model, tiny)
    before = {module: set(vars(module)) for module in tiny.model.modules()}
    policy = Cut(CUTS[cut])
    parts = policy.parts(layout_of(tiny.model, find_adapter(tiny.model)))
    with apply_policy(tiny.model, policy) as handle:
        full = tiny()
        partial, seen = ran(tiny.model, tiny)
        assert torch.equal(full, plain)
        assert relative_error(partial, plain) < 1e-5
        assert handle.summary().mask == "Fp"
        assert handle.summary().contexts[0].cache_bytes > 0
    idle = expected_idle(tiny.model, parts)
    assert idle & all_of_them
    assert all_of_them - seen == idle & all_of_them
    assert torch.equal(tiny(), plain)
    assert {module: set(vars(module)) for module in tiny.model.modules()} == before


def kind_of(model):
    """What a policy can leave out of it, as a set of pairs of the image stream and modules by name, for every block."""
    adapter = find_adapter(model)
    blocks = adapter.modules(model)[0]
    kind = set()
    for block, index in blocks:
        names = {module: name for name, module in block.named_modules()}
        found = [
            (site, *(tuple(names[module] for module in modules) for modules in pair))
            for site, pair in modules_of(block, adapter).items()
        ]
        kind.add((adapter.streams[index], tuple(found)))
    return frozenset(kind)


# one class of every other kind, and those whose blocks take something in on the way
MORE = [
    name
    for name in (
        "AuraFlow", "Chroma", "CogVideoX", "ConsisID", "EasyAnimate", "HiDream", "HunyuanDiT", "HunyuanVideo1.5",
        "JoyImage", "Kandinsky5", "Krea2", "Lumina2", "LuminaNext", "Mochi", "NucleusMoE", "PRX", "WanAnimate",
        "WanVACE", "ZImage",
    )
    if name in CLASSES
]  # fmt: skip


def test_every_class_is_of_a_kind():
    """Of one that is run here; nothing in it is of a kind that nobody knows."""
    kinds = {}
    for name in CLASSES:
        model = make(name).model
        apply_policy(model, Cut(CUTS["branches"])).remove()
        kinds[name] = kind_of(model)
    run = {kinds[name] for name in (*NAMES, *OTHERS, *MORE) if name in kinds}
    assert [name for name in CLASSES if kinds[name] not in run] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_every_kind_of_class(name):
    """Given the parts of the very same call, the output is the same, cut by blocks and by modules."""
    tiny = make(name)
    plain = tiny()
    for cut in ("front", "branches"):
        with apply_policy(tiny.model, Cut(CUTS[cut])) as handle:
            assert torch.equal(tiny(), plain)
            assert relative_error(tiny(), plain) < 1e-5
            assert handle.summary().mask == "Fp"


@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_gradients(name):
    """In the default state of a model, of full steps to the last bit."""
    tiny = make(name)
    with apply_policy(tiny.model, Cut(CUTS["branches"], full=2)) as handle:
        outputs = [tiny.model(**tiny.at(step, 4), return_dict=False)[0] for step in range(4)]
        for output in outputs:
            output.square().sum().backward()
        assert handle.summary().mask == "FFpp"
    with torch.enable_grad():
        plain = [tiny.model(**tiny.at(step, 4), return_dict=False)[0] for step in range(4)]
    assert all(map(torch.equal, outputs[:2], plain[:2]))
    assert not torch.equal(outputs[3], plain[3])


@pytest.mark.parametrize("name", ["Flux", "SD3", "Wan"])
def test_interval_one_is_the_model(name):
    """Of every policy that may leave something out: to the last bit, at every step."""
    always = TAPConfig(interval=1)
    tiny = make(name)
    plain = [tiny(**tiny.at(step, 4)) for step in range(4)]
    for policy in (
        ModulesPolicy(1, always), DeltaDiTPolicy(always, group=1, detail=0), GroupsPolicy(((0, 1),), always),
        PABPolicy(1, 1, window=(0, 1)), DBCachePolicy(0.0, first=1, last=1), TemporalDeltaPolicy(0.0),
        ToCaPolicy(0.5, always), TAPTokensPolicy(0.5, always), RASPolicy(0.5, dense=4),
        HSAPolicy((1, 1), dense=2),
    ):  # fmt: skip
        with apply_policy(tiny.model, policy) as handle:
            outputs = [tiny(**tiny.at(step, 4)) for step in range(4)]
        assert handle.summary().mask == "FFFF", policy
        assert all(map(torch.equal, outputs, plain)), policy


def test_what_a_control_net_adds_between_blocks_is_part_of_a_group():
    tiny = make("SD3")
    residuals = [torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    plain, without = tiny(block_controlnet_hidden_states=residuals), tiny()
    for cut in ("front", "middle", "every block"):
        with apply_policy(tiny.model, Cut(CUTS[cut])) as handle:
            outputs = [tiny(block_controlnet_hidden_states=residuals) for _ in range(2)]
        assert handle.summary().mask == "Fp"
        assert relative_error(outputs[1], plain) < 1e-5
    assert relative_error(without, plain) > 0.01


@pytest.mark.parametrize(
    ("name", "cut", "whole"), [("DiT", "middle", True), ("DiT", "branches", True), ("Flux", "branches", False)]
)
def test_in_a_compiled_model(name, cut, whole):
    """Decisions stay in Python; what runs is compiled."""
    tiny, compiled = make(name), make(name)
    compiled.model.compile(backend="eager") if whole else compiled.model.compile_repeated_blocks(backend="eager")
    found = []
    for each in (tiny, compiled):
        with apply_policy(each.model, Cut(CUTS[cut], full=2, family=TaylorFamily((1,), (0,)))) as handle:
            found.append(torch.stack([each(**each.at(step, 5)) for step in range(5)]))
        assert handle.summary().mask == "FFppp"
    assert relative_error(found[1], found[0]) < 1e-5


def test_refusals():
    class Unnamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)

    tiny = make("DiT")
    tiny.model.transformer_blocks[0].mixer = Unnamed()
    with pytest.raises(ValueError, match=r"BasicTransformerBlock\.mixer is neither attention nor feed-forward"):
        apply_policy(tiny.model, Cut(CUTS["branches"]))
    with apply_policy(tiny.model, Cut(CUTS["front"])):
        tiny()

    class Never(Cut):
        def wants_full(self, step):
            return step == 0

        def observe_part(self, step, part, slot, value): ...

    with apply_policy(tiny.model, Never(CUTS["front"])):
        tiny()
        with pytest.raises(RuntimeError, match="which has not run yet"):
            tiny()
