"""Modules that give the same until one argument changes: what they gave is handed out again, and never too long."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import tapstudy
from tapstudy import TAPConfig
from tapstudy.instrument.adapters import ADAPTERS
from tapstudy.instrument.idle import Untouched, constant_modules, keep
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.instrument.replay import Replay, relative_error
from tests.instrument.test_idle import watch
from tests.instrument.tiny_models import VARIANTS, make

T = 6
CONFIG = TAPConfig(interval=3, warmup_steps=2)
KINDS = "FF..F."


def row(tiny):
    return ADAPTERS[type(tiny.model).__name__]


def constants(name):
    tiny = make(name)
    return constant_modules(tiny.model, row(tiny).constant)


PATHS = {
    "CogVideoX1.5": {"ofs_embedding": "ofs"},
    "Flux": {
        "time_text_embed.guidance_embedder": "guidance",
        "time_text_embed.text_embedder": "pooled_projections",
    },
    "Flux-schnell": {"time_text_embed.text_embedder": "pooled_projections"},
    "Flux2": {"time_guidance_embed.guidance_embedder": "guidance"},
    "HunyuanVideo": {
        "time_text_embed.guidance_embedder": "guidance",
        "time_text_embed.text_embedder": "pooled_projections",
    },
    "PixArt-1024": {
        "adaln_single.emb.resolution_embedder": "added_cond_kwargs",
        "adaln_single.emb.aspect_ratio_embedder": "added_cond_kwargs",
    },
    "SD3": {"time_text_embed.text_embedder": "pooled_projections"},
    "SD3.5": {"time_text_embed.text_embedder": "pooled_projections"},
    "Sana-Sprint": {"time_embed.guidance_embedder": "guidance"},
}


def test_which_models_have_some():
    assert {name: {*found} for name in VARIANTS if (found := constants(name))} == {
        name: {*paths} for name, paths in PATHS.items()
    }


def changed(value):
    if isinstance(value, dict):
        return {name: changed(part) for name, part in value.items()}
    return 1.25 * value


def change_in_place(value):
    for tensor in value.values() if isinstance(value, dict) else [value]:
        tensor.mul_(1.25)


def copied(value):
    return {name: part.clone() for name, part in value.items()} if isinstance(value, dict) else value.clone()


def outputs_of(tiny, policy, arguments, *, handle_at=lambda handle, step: nullcontext()):
    """Outputs of one call per entry of `arguments`, and the modules that ran in each."""
    ran = watch(constant_modules(tiny.model, row(tiny).constant))
    outputs, per_step = [], []
    with tapstudy.apply_policy(tiny.model, policy) as handle:
        for step, given in enumerate(arguments):
            with handle_at(handle, step):
                outputs.append(tiny(**given))
            per_step.append({*ran})
            ran.clear()
        masks = {context.context: context.mask for context in handle.summary().contexts}
    return outputs, per_step, masks


def without(monkeypatch, tiny):
    name = type(tiny.model).__name__
    monkeypatch.setitem(ADAPTERS, name, replace(ADAPTERS[name], constant=()))


def assert_exact(monkeypatch, name, policy, arguments, **options):
    """The same bits as without constants; returns which modules ran at every step."""
    outputs, per_step, masks = outputs_of(make(name), policy, arguments, **options)
    plain = make(name)
    without(monkeypatch, plain)
    expected, _, expected_masks = outputs_of(plain, policy, arguments, **options)
    monkeypatch.undo()
    assert masks == expected_masks
    assert all(map(torch.equal, outputs, expected))
    return per_step, masks


@pytest.mark.parametrize(
    ("name", "rebuilt"),
    [*((name, name in ("Flux", "PixArt-1024", "SD3.5")) for name in PATHS), ("Flux", False), ("PixArt-1024", False)],
)
def test_they_run_at_full_steps_only(monkeypatch, name, rebuilt):
    tiny = make(name)
    arguments = [tiny.at(step, T) for step in range(T)]
    if rebuilt:
        arguments = [given | {key: copied(given[key]) for key in PATHS[name].values()} for given in arguments]
    per_step, masks = assert_exact(monkeypatch, name, TAPPolicy(CONFIG), arguments)
    assert list(masks.values()) == [KINDS]
    assert per_step == [{*PATHS[name]} if kind == "F" else set() for kind in KINDS]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (name, path)
        for name, paths in PATHS.items()
        if name not in ("Flux-schnell", "SD3.5")
        for path in paths
        if "aspect_ratio" not in path and (name != "Flux" or "text" in path.rpartition(".")[2])
    ],
)
def test_a_changed_argument_is_embedded_anew(monkeypatch, name, path):
    """At every skip step another value: as a new object, then written into the old one."""
    argument = PATHS[name][path]
    affected = {other for other, key in PATHS[name].items() if key == argument}

    def sampled(constant):
        tiny = make(name)
        if not constant:
            without(monkeypatch, tiny)
        ran = watch(constant_modules(tiny.model, row(tiny).constant))
        outputs, per_step = [], []
        with tapstudy.apply_policy(tiny.model, Replay(full=(0, 3))) as handle, handle.context("one"):
            value = copied(tiny.inputs[argument])
            for step in range(5):
                if step == 1:
                    value = changed(value)
                elif step in (2, 4):
                    change_in_place(value)
                outputs.append(tiny(**{argument: value}))
                per_step.append({*ran})
                ran.clear()
        return outputs, per_step

    outputs, per_step = sampled(True)
    assert per_step == [{*PATHS[name]}, affected, affected, {*PATHS[name]}, affected]
    expected, _ = sampled(False)
    assert all(map(torch.equal, outputs, expected))
    assert all(relative_error(outputs[step], outputs[0]) > 1e-4 for step in (1, 2, 4))  # it matters


def test_an_argument_that_changes_back_is_embedded_anew(monkeypatch):
    """What counts is the last full step, whatever the first was."""
    tiny = make("SD3")
    first, second = (
        tiny.inputs | {"pooled_projections": factor * tiny.inputs["pooled_projections"]} for factor in (1, 2)
    )
    named = lambda handle, step: handle.context("one")  # noqa: E731
    arguments = [first, first, second, first, second]
    per_step, masks = assert_exact(monkeypatch, "SD3", Replay(full=(0, 2)), arguments, handle_at=named)
    assert masks == {"one": "F.F.."}
    assert [len(ran) for ran in per_step] == [1, 0, 1, 1, 0]


@pytest.mark.parametrize("naming", ["handle", "cache_context", "conditioning"])
def test_every_context_has_its_own(monkeypatch, naming):
    """Guidance in two calls, with different pooled text: neither sees what the other embedded."""
    tiny = make("Flux")
    first, second = (
        tiny.inputs,
        tiny.inputs
        | {
            "pooled_projections": -tiny.inputs["pooled_projections"],
            "encoder_hidden_states": -tiny.inputs["encoder_hidden_states"],
        },
    )
    arguments = [
        branch | {key: tiny.at(step, T)[key] for key in ("timestep", "hidden_states")}
        for step in range(T)
        for branch in (first, second)
    ]
    names = ("cond", "uncond")

    def sampled(constant):
        model = make("Flux")
        if not constant:
            without(monkeypatch, model)
        ran = watch(constant_modules(model.model, row(model).constant))
        outputs, per_call = [], []
        with tapstudy.apply_policy(model.model, TAPPolicy(CONFIG)) as handle:
            for call, given in enumerate(arguments):
                name = names[call % 2]
                inside = {
                    "handle": handle.context(name),
                    "cache_context": model.model.cache_context(name),
                    "conditioning": nullcontext(),
                }[naming]
                with inside:
                    outputs.append(model(**given))
                per_call.append(len(ran))
                ran.clear()
            assert [context.mask for context in handle.summary().contexts] == [KINDS, KINDS]
        return outputs, per_call

    outputs, per_call = sampled(True)
    assert per_call == [2 if kind == "F" else 0 for kind in KINDS for _ in names]
    expected, _ = sampled(False)
    assert all(map(torch.equal, outputs, expected))


def test_a_second_run_with_another_prompt(monkeypatch):
    """The second run starts with a full step; nothing of the first run is left."""
    tiny = make("SD3")
    arguments = [tiny.at(step, T) for step in range(T)]
    arguments += [given | {"pooled_projections": -given["pooled_projections"]} for given in arguments]
    per_step, masks = assert_exact(monkeypatch, "SD3", TAPPolicy(CONFIG), arguments)
    assert list(masks.values()) == [KINDS]
    assert [len(ran) for ran in per_step] == [1 if kind == "F" else 0 for kind in 2 * KINDS]


def test_changes_of_other_arguments_leave_them_alone(monkeypatch):
    """Guidance changes in the middle of a run: pooled text is not embedded again."""
    tiny = make("HunyuanVideo")
    arguments = [tiny.at(step, T) for step in range(T)]
    arguments = [given | {"guidance": given["guidance"] * (1 + (step > 2))} for step, given in enumerate(arguments)]
    per_step, _ = assert_exact(monkeypatch, "HunyuanVideo", TAPPolicy(CONFIG), arguments)
    assert per_step[2:4] == [set(), {"time_text_embed.guidance_embedder"}]


def test_another_shape_of_any_argument_runs_them(monkeypatch):
    tiny = make("SD3")
    longer = tiny.inputs | {"encoder_hidden_states": tiny.inputs["encoder_hidden_states"].repeat(1, 2, 1)}
    named = lambda handle, step: handle.context("one")  # noqa: E731
    per_step, _ = assert_exact(monkeypatch, "SD3", Replay(), [tiny.inputs, longer, tiny.inputs], handle_at=named)
    assert [len(ran) for ran in per_step] == [1, 1, 0]


@pytest.mark.parametrize("threshold", [0.0, 1e9], ids=["decides to run", "decides to skip"])
def test_a_pass_that_is_not_decided_yet(monkeypatch, threshold):
    """What is handed out is what the module would give, so it may as well become a full pass."""
    tiny = make("Flux")
    arguments = [tiny.at(step, T) for step in range(T)]
    policy = AdaptiveTAPPolicy(threshold, CONFIG)
    per_step, masks = assert_exact(monkeypatch, "Flux", policy, arguments)
    assert list(masks.values()) == ["F" * T if threshold == 0 else KINDS]
    assert [len(ran) for ran in per_step][2:4] == [0, 0]


def test_a_deeper_probe_has_constants_too(monkeypatch):
    tiny = make("Flux")
    arguments = [tiny.at(step, T) for step in range(T)]
    per_step, _ = assert_exact(monkeypatch, "Flux", TAPPolicy(replace(CONFIG, probe_depth=1)), arguments)
    assert per_step == [{*PATHS["Flux"]} if kind == "F" else set() for kind in KINDS]


def test_training_and_gradients_run_them():
    for training, gradients in ((True, False), (False, True)):
        tiny = make("SD3")
        tiny.model.train(training)
        ran = watch(constant_modules(tiny.model, row(tiny).constant))
        with tapstudy.apply_policy(tiny.model, Replay()) as handle, torch.set_grad_enabled(gradients):
            for _ in range(3):
                tiny.model(**tiny.inputs)
            assert handle.summary().contexts[0].mask == "F.."
        assert len(ran) == 3


def test_nothing_is_held_after_a_run():
    tiny = make("Flux")
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        tiny(), tiny()
        (instrument,) = handle._instruments.values()
        (run,) = instrument.runs.values()
        assert {*run.constants} == {*PATHS["Flux"]}
        assert {*run.kept} == {*PATHS["Flux"].values()}
        instrument.end_trajectory()
        assert [run.constants, run.kept, run.blanks, run.described] == [{}, {}, {}, None]


# On an accelerator nothing is compared by value; the meta device, which has no values, stands for one


def test_on_an_accelerator_only_the_same_untouched_object_is_the_same():
    base = torch.ones(4, device="meta")
    scale = base.expand(2, 4)
    held = keep(scale)
    assert isinstance(held, Untouched)
    assert held.still(scale)
    assert not held.still(base.expand(2, 4))
    assert not held.still(None)
    base.mul_(2)  # a write to what it is a view of
    assert not held.still(scale)
    assert keep(scale).still(scale)
    assert keep({"a": [scale]})["a"][0].still(scale)


def test_what_tracks_no_writes_is_never_certainly_the_same():
    with torch.inference_mode():
        scale = torch.ones(4, device="meta")
        assert not keep(scale).still(scale)


def test_in_host_memory_values_count():
    scale = torch.ones(4)
    held = keep(scale)
    scale.mul_(2)
    assert torch.equal(held, torch.ones(4))


# Wrong rows


@pytest.mark.parametrize(
    ("name", "path", "argument"),
    [
        ("Flux", "time_text_embed.timestep_embedder", "guidance"),
        ("Flux", "time_text_embed", "pooled_projections"),
        ("Flux", "x_embedder", "pooled_projections"),
        ("PixArt-1024", "adaln_single.emb.resolution_embedder", "encoder_hidden_states"),
        ("DiT", "transformer_blocks.0.norm1.emb.timestep_embedder", "class_labels"),
        ("Lumina2", "time_caption_embed.timestep_embedder", "encoder_hidden_states"),
    ],
)
def test_check_finds_a_module_that_depends_on_more(monkeypatch, name, path, argument):
    tiny = make(name)
    key = type(tiny.model).__name__
    monkeypatch.setitem(ADAPTERS, key, replace(ADAPTERS[key], constant=((path, argument),)))
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert f"{path} is not constant: it depends on more than '{argument}'" in report.problems


def test_a_row_whose_parent_is_not_there(monkeypatch):
    tiny = make("Flux")
    monkeypatch.setitem(ADAPTERS, "FluxTransformer2DModel", replace(row(tiny), constant=(("time.text", "guidance"),)))
    with pytest.raises(AttributeError, match="time"):
        tapstudy.apply_tap(tiny.model)
    assert not any("forward" in vars(module) for module in tiny.model.modules())
