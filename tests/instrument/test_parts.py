"""Blocks, groups of blocks and modules that a policy leaves out: on models with one stream of tokens and with two."""

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tapstudy import apply_policy
from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.parts import layout_of, modules_of
from tapstudy.policies.parts import PartsPolicy
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import make

NAMES = ["DiT", "Flux", "SD3", "SD3.5", "Wan", "Flux2", "HunyuanVideo", "PixArt", "QwenImage"]
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", CUTS)
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


@pytest.mark.parametrize("name", ["DiT", "Flux", "SD3", "Wan"])
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
