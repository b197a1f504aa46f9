"""Hooks of others put on and off in any order beside a policy: theirs work as without it, and it stays in force."""

from __future__ import annotations

import copy
import functools

import accelerate
import diffusers.hooks
import pytest
import torch
from accelerate.hooks import add_hook_to_module, remove_hook_from_module, remove_hook_from_submodules
from diffusers.hooks import HookRegistry, apply_group_offloading
from hypothesis import given
from hypothesis import strategies as st

import tapstudy
from tests.instrument.replay import Replay, relative_error
from tests.instrument.tiny_models import make

CPU = torch.device("cpu")
PATHS = ("", "transformer_blocks.0", "transformer_blocks.0.attn", "transformer_blocks.2", "norm_out", "proj_out")


class Accelerate(accelerate.hooks.ModelHook):
    def __init__(self, log, path):
        self.log, self.path = log, path

    def pre_forward(self, module, *args, **kwargs):
        self.log.append((self.path, "accelerate"))
        return args, kwargs


class Diffusers(diffusers.hooks.ModelHook):
    def __init__(self, log, path, name):
        super().__init__()
        self.log, self.path, self.name = log, path, name

    def pre_forward(self, module, *args, **kwargs):
        self.log.append((self.path, self.name))
        return args, kwargs


class DiffusersAround(Diffusers):
    """One that runs the forward itself."""

    pre_forward = diffusers.hooks.ModelHook.pre_forward

    def new_forward(self, module, *args, **kwargs):
        self.log.append((self.path, self.name))
        return self.fn_ref.original_forward(*args, **kwargs)


class World:
    """A model, other people's hooks on it, and what they saw."""

    def __init__(self, tiny):
        self.tiny, self.log = tiny, []

    def change(self, party, path, on):
        module = self.tiny.model.get_submodule(path)
        if party == "accelerate":
            if on:
                add_hook_to_module(module, Accelerate(self.log, path), append=on == "append")
            else:
                remove_hook_from_module(module)
        elif party == "accelerate everywhere":
            if on:
                accelerate.cpu_offload(self.tiny.model, execution_device=CPU)
            else:
                remove_hook_from_submodules(self.tiny.model)
        else:
            registry = HookRegistry.check_if_exists_or_initialize(module)
            if on:
                kind = DiffusersAround if party == "diffusers around" else Diffusers
                registry.register_hook(kind(self.log, path, party), party)
            else:
                registry.remove_hook(party, recurse=False)

    def call(self):
        """What a full step gives, and who saw it."""
        self.log.clear()
        output = self.tiny()
        return output, list(self.log)


def described(module):
    """Every forward that the module keeps, by the names of those who put them there."""
    own = type(module).forward.__get__(module)

    def chain(value):
        if value == own:
            return "own"
        assert isinstance(value, functools.partial), value
        return value.func.__qualname__

    kept = vars(module)
    found = {"forward": chain(kept.get("forward", own))}
    if "_old_forward" in kept:
        found["_old_forward"] = chain(kept["_old_forward"])
    if "_hf_hook" in kept:
        found["_hf_hook"] = type(kept["_hf_hook"]).__name__
    registry = kept.get("_diffusers_hook")
    for name, reference in zip(registry._hook_order, registry._fn_refs, strict=True) if registry else ():
        found[name] = chain(reference.forward if reference.original_forward is None else reference.original_forward)
    return found


PARTIES = ("accelerate", "diffusers", "diffusers around")
CHANGES = st.one_of(
    st.tuples(st.sampled_from(PARTIES), st.sampled_from(PATHS), st.sampled_from(("on", "append", ""))),
    st.tuples(st.just("accelerate everywhere"), st.just(""), st.sampled_from(("on", ""))),
    st.tuples(st.just("policy"), st.just(""), st.sampled_from(("on", ""))),
    st.tuples(st.just("call"), st.just(""), st.just("on")),
)


@functools.cache
def sd3():
    return make("SD3")


@given(st.lists(CHANGES, min_size=2, max_size=9))
def test_any_order_is_as_without_the_policy(changes):
    plain, beside = World(copy.deepcopy(sd3())), World(copy.deepcopy(sd3()))
    handle = None

    def compare():
        """Returns False where hooks of others are broken without the policy, too."""
        try:
            expected = plain.call()
        except (AttributeError, RecursionError, NotImplementedError, RuntimeError):
            return False
        if handle is not None:
            handle.reset()
        output, log = beside.call()
        assert torch.equal(output, expected[0])
        assert log == expected[1]
        if handle is not None:
            assert relative_error(beside.tiny(), output) < 1e-5
            summary = handle.summary()
            assert [context.mask for context in summary.contexts] == ["F."]
            assert not summary.notes
        return True

    for party, path, on in [*changes, ("policy", "", "")]:
        if party == "policy" and on and handle is None:
            handle = tapstudy.apply_policy(beside.tiny.model, Replay())
        elif party == "policy" and not on and handle is not None:
            handle.remove()
            handle = None
        elif party not in ("policy", "call"):
            try:
                plain.change(party, path, on)
            except (AttributeError, ValueError, NotImplementedError):
                return
            beside.change(party, path, on)
        if party in ("policy", "call") and not compare():
            return
    for (path, module), twin in zip(plain.tiny.model.named_modules(), beside.tiny.model.modules(), strict=True):
        assert described(module) == described(twin), path


# Over all kinds of layouts


def offloads(model, log):
    """Every way of offloading: put it on, take it off."""
    yield lambda: accelerate.cpu_offload(model, execution_device=CPU), lambda: remove_hook_from_submodules(model)
    yield (
        lambda: add_hook_to_module(model, Accelerate(log, "")),
        lambda: remove_hook_from_module(model, recurse=True),
    )
    yield (
        lambda: apply_group_offloading(model, onload_device=CPU, offload_device=CPU, offload_type="leaf_level"),
        lambda: remove_diffusers_hooks(model),
    )


def remove_diffusers_hooks(model):
    for module in model.modules():
        registry = getattr(module, "_diffusers_hook", None)
        for name in list(getattr(registry, "hooks", ())):
            registry.remove_hook(name, recurse=False)


WAYS = ("accelerate", "accelerate on the model", "groups")
ORDERS = [(before, after) for before in (True, False) for after in (True, False)]


@pytest.mark.parametrize(("before", "after"), ORDERS)  # offloading comes before the policy, and goes after it
def test_offloading_of_any_kind_comes_and_goes(before, after):
    for how in WAYS:
        comes_and_goes("SD3", before, after, how)


@pytest.mark.parametrize(
    ("name", "before", "after", "way"),
    [
        ("Flux2", True, True, "accelerate"),
        ("HiDream", True, False, "groups"),
        ("Lumina2", False, True, "accelerate on the model"),
        ("ZImage", False, False, "groups"),
    ],
)
def test_offloading_of_every_kind_of_layout_comes_and_goes(name, before, after, way):
    comes_and_goes(name, before, after, way)


def comes_and_goes(name, before, after, way):
    how, log = WAYS.index(way), []
    tiny = make(name)
    if how == 2 and not tiny.model._supports_group_offloading:
        return
    plain = tiny()
    on, off = list(offloads(tiny.model, log))[how]
    if before:
        on()
    handle = tapstudy.apply_policy(tiny.model, Replay(full=(0, 3)))
    if not before:
        on()
    outputs = [tiny(), tiny()]
    if not after:
        off()
    outputs += [tiny(), tiny()]
    assert handle.summary().contexts[0].mask == "F..F"
    assert torch.equal(outputs[0], plain)
    assert torch.equal(outputs[3], plain)
    assert max(relative_error(output, plain) for output in outputs) < 1e-5
    handle.remove()
    log.clear()
    assert torch.equal(tiny(), plain)
    assert bool(log) == (how == 1 and after), "the hook of accelerate works on"
    if after:
        off()
    assert torch.equal(tiny(), plain)
    assert {described(module)["forward"] for module in tiny.model.modules()} == {"own"}


@pytest.mark.parametrize(
    ("name", "first"),
    [("DiT", "policy"), ("Flux", "offload"), ("Lumina2", "policy")],
)
def test_blocks_that_are_skipped_are_not_brought_in(name, first):
    """Offloading that came later is asked for no block that a skip step passes over, just as one that came before."""
    tiny = make(name)
    adapter = tapstudy.instrument.adapters.find_adapter(tiny.model)
    blocks = [block for block, _ in adapter.modules(tiny.model)[0]]
    log = []

    def offload():
        for index, block in enumerate(blocks):
            add_hook_to_module(block, Accelerate(log, index))

    if first == "offload":
        offload()
    with tapstudy.apply_policy(tiny.model, Replay()):
        if first == "policy":
            offload()
        tiny()
        assert [index for index, _ in log] == list(range(len(blocks)))
        log.clear()
        tiny()
        assert [index for index, _ in log] == [0]
    log.clear()
    tiny()
    assert len(log) == len(blocks)
