"""Modules that idle at a skip step: nothing depends on what they would have given, and they do not run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import tapstudy
from tapstudy import TAPConfig
from tapstudy.instrument.adapters import ADAPTERS, Adapter
from tapstudy.instrument.idle import blank, describe, idle_modules, same_description
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.instrument.replay import Replay
from tests.instrument.tiny_models import VARIANTS, make

T = 6
POLICIES = {
    "hidden": TAPPolicy(TAPConfig(interval=3, warmup_steps=2)),
    "latent": TAPPolicy(TAPConfig(interval=3, warmup_steps=2, residual="latent")),
    "no probe": FixedPolicy(1, config=TAPConfig(interval=3, warmup_steps=2)),
}


def row(tiny):
    return ADAPTERS[type(tiny.model).__name__]


def watch(modules):
    """A list that gets the path of every one of these modules whose own forward runs. Before a policy is applied."""
    ran = []

    def watched(path, forward):
        def run(*args, **kwargs):
            ran.append(path)
            return forward(*args, **kwargs)

        return run

    for path, module in modules.items():
        module.forward = watched(path, module.forward)
    return ran


def trajectory(tiny, policy, *, before_step=lambda step, instrument: None):
    outputs, kinds = [], []
    with tapstudy.apply_policy(tiny.model, policy) as handle:
        handle.listen(lambda event: kinds.append(event.kind))
        (instrument,) = handle._instruments.values()
        for step in range(T):
            before_step(step, instrument)
            outputs.append(tiny(**tiny.at(step, T)))
    return outputs, kinds


def without_idling(monkeypatch, tiny):
    name = type(tiny.model).__name__
    monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], idle=()))


def test_every_class_with_text_has_some():
    """Lumina-Next leaves the text to its blocks."""
    assert sorted(name for name in VARIANTS if not row(make(name)).idle) == ["DiT", "LuminaNext"]


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("CogVideoX1.5", "hidden"), ("FramePack", "hidden"), ("HiDream", "hidden"), ("Lumina2", "hidden"),
        ("SD3.5", "latent"), ("Wan2.2", "no probe"), ("ZImage", "no probe"),
    ],
)  # fmt: skip
def test_skip_steps_are_bit_equal_whatever_idle_modules_would_give(monkeypatch, name, policy):
    """Run as ever, idle, idle and handing out NaN, and with weights of NaN after the last full step: all the same.

    They run at full steps, and at no other.
    """

    def nan_blanks(step, instrument):
        for run in instrument.runs.values():
            run.blanks = blank(run.blanks, float("nan"))

    tiny = make(name)
    modules, per_step = idle_modules(tiny.model, row(tiny).idle), []
    ran = watch(modules)
    idle, kinds = trajectory(tiny, POLICIES[policy], before_step=lambda *_: (per_step.append({*ran}), ran.clear()))
    assert kinds == ["full", "full", "skip", "skip", "full", "skip"]
    assert [*per_step[1:], {*ran}] == [{*modules}, {*modules}, set(), set(), {*modules}, set()]
    poisoned, _ = trajectory(make(name), POLICIES[policy], before_step=nan_blanks)
    assert all(map(torch.equal, poisoned, idle))

    tiny = make(name)
    modules = idle_modules(tiny.model, row(tiny).idle).values()
    tensors = [tensor for module in modules for tensor in _floating(module)]
    originals = [tensor.clone() for tensor in tensors]

    def nan_weights_at_skips(step, instrument):
        for tensor, original in zip(tensors, originals, strict=True):
            tensor.data.copy_(torch.full_like(original, torch.nan) if step in (2, 3, 5) else original)

    spoiled, _ = trajectory(tiny, POLICIES[policy], before_step=nan_weights_at_skips)
    assert all(map(torch.equal, spoiled, idle))

    tiny = make(name)
    without_idling(monkeypatch, tiny)
    every, _ = trajectory(tiny, POLICIES[policy])
    assert all(map(torch.equal, every, idle))


def _floating(module):
    return [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]


@pytest.mark.parametrize(
    "policy",
    [
        TAPPolicy(TAPConfig(interval=3, warmup_steps=2, probe_depth=1)),  # the first block reads text
        AdaptiveTAPPolicy(1e9, TAPConfig(interval=3, warmup_steps=2)),  # may go on from the probe in full
    ],
)
def test_they_run_where_blocks_may_still_read_them(policy):
    tiny = make("Flux")
    ran = watch(idle_modules(tiny.model, row(tiny).idle))
    _, kinds = trajectory(tiny, policy)
    assert kinds.count("skip") == 3
    assert ran.count("context_embedder") == T


def test_they_run_for_a_gradient():
    tiny = make("SD3")
    ran = watch(idle_modules(tiny.model, row(tiny).idle))
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        for step in range(2):
            tiny.model(**tiny.at(step, T))
        assert handle.summary().contexts[0].mask == "F."
    assert sorted(ran) == sorted(2 * row(tiny).idle)


def test_another_shape_of_the_text_runs_them_again():
    """The latent is the same, so the history is good; but nobody knows the shapes that longer text leads to."""
    tiny = make("Wan")
    ran = watch(idle_modules(tiny.model, row(tiny).idle))
    longer = tiny.inputs["encoder_hidden_states"].repeat(1, 2, 1)
    with tapstudy.apply_policy(tiny.model, Replay()) as handle, handle.context("one"):
        tiny(), tiny(), tiny(encoder_hidden_states=longer), tiny(encoder_hidden_states=longer), tiny()
        assert handle.summary().contexts[0].mask == "F...."
    assert ran.count("rope") == 3


# A skip step that cannot skip after all


class _Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.modulation = nn.Linear(width, 2 * width)
        self.attn1 = nn.Linear(width, width)
        self.attends = True

    def forward(self, hidden_states, encoder_hidden_states):
        mixed = hidden_states + encoder_hidden_states.mean(dim=1, keepdim=True)
        shift, gate = self.modulation(hidden_states.mean(dim=1, keepdim=True)).chunk(2, dim=-1)
        mixed = mixed + shift
        return hidden_states + gate * (self.attn1(mixed) if self.attends else mixed)


class WithText(nn.Module):
    def __init__(self):
        super().__init__()
        self.text, self.late = nn.Linear(4, 8), nn.Linear(4, 8)
        self.patches = nn.Conv2d(8, 8, 2, stride=2)
        self.stack = nn.ModuleList(_Block(8) for _ in range(2))
        self.last = nn.LayerNorm(8)

    def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict=True):
        text = self.text(encoder_hidden_states)  # (B, T, 8)
        hidden_states = self.patches(hidden_states).flatten(2).mT  # (B, N, 8)
        hidden_states = self.stack[0](hidden_states, text)
        hidden_states = hidden_states + self.late(encoder_hidden_states).mean(dim=1, keepdim=True)
        hidden_states = self.stack[1](hidden_states, text)
        return (self.last(hidden_states),)


def test_a_pass_whose_attention_is_not_called_starts_again_with_all_modules(monkeypatch):
    one_row = Adapter(("stack",), lambda model, arguments: (1, 2, 3), tail="last", idle=("text", "late"))
    monkeypatch.setitem(ADAPTERS, "WithText", one_row)
    torch.manual_seed(0)
    model = WithText()
    inputs = {"hidden_states": torch.randn(2, 8, 4, 6), "encoder_hidden_states": torch.randn(2, 3, 4)}
    with torch.no_grad():
        with tapstudy.apply_policy(model, Replay()) as handle:
            full = model(**inputs, timestep=torch.tensor(3.0))[0]
            torch.testing.assert_close(model(**inputs, timestep=torch.tensor(2.0))[0], full)
            assert handle.summary().contexts[0].mask == "F."
            for block in model.stack:
                block.attends = False
            with pytest.warns(UserWarning, match="probe not reached"):
                output = model(**inputs, timestep=torch.tensor(1.0))[0]
            assert handle.summary().contexts[0].fail_opens == {"probe not reached": 1}
        assert torch.equal(output, model(**inputs, timestep=torch.tensor(1.0))[0])


# Wrong rows


@pytest.mark.parametrize(
    ("name", "path", "problem"),
    [
        ("DiT", "pos_embed", "true residual, is off by nan"),
        ("Wan", "condition_embedder.time_embedder", "probe of the skip step is off by nan"),
    ],
)
def test_check_finds_a_module_that_is_read(monkeypatch, name, path, problem):
    tiny = make(name)
    key = type(tiny.model).__name__
    monkeypatch.setitem(ADAPTERS, key, replace(ADAPTERS[key], idle=(*ADAPTERS[key].idle, path)))
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert any(problem in found for found in report.problems), report


def test_a_row_that_names_nothing(monkeypatch):
    tiny = make("Wan")
    monkeypatch.setitem(ADAPTERS, "WanTransformer3DModel", replace(row(tiny), idle=("ropes",)))
    with pytest.raises(AttributeError, match="ropes"):
        tapstudy.apply_tap(tiny.model)
    assert not any("forward" in vars(module) for module in tiny.model.modules())


# Blanks and descriptions


def test_blanks_have_the_shape_and_no_memory():
    mask = torch.tensor([True, False])
    text, (table, kept), length = blank((torch.ones(2, 3).bfloat16(), [torch.ones(4, dtype=torch.complex64), mask], 7))
    assert text.shape == (2, 3)
    assert text.dtype == torch.bfloat16
    assert text.untyped_storage().nbytes() == 2
    assert table.dtype == torch.complex64
    assert kept is mask
    assert length == 7
    assert not text.any()
    assert blank(torch.ones(2, 3), float("nan")).isnan().all()


def test_descriptions_tell_shapes_and_masks_apart():
    text, mask = torch.randn(2, 3, 4), torch.tensor([3, 2])
    held = describe({"x": text, "mask": mask, "t": torch.tensor(5), "sizes": [(1, 2)], "flag": None}, ("t",))
    same = {"x": text + 1, "mask": mask.clone(), "t": torch.tensor(4), "sizes": [(1, 2)], "flag": None}
    assert same_description(held, describe(same, ("t",)))
    for other in ({"x": text[:, :2]}, {"x": text.double()}, {"mask": mask + 1}, {"sizes": [(2, 1)]}, {"flag": 1}):
        assert not same_description(held, describe({**same, **other}, ("t",)))
    assert not same_description(held, describe({key: same[key] for key in ("x", "mask", "t")}, ("t",)))
    assert not same_description(None, held)
    assert all(value is not text for value in held["x"])
