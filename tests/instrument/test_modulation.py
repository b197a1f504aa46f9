"""The first block's modulation: a skip step computes the parts that reach the probe, and no others."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import tapstudy
from tapstudy import TAPConfig
from tapstudy.instrument.adapters import ADAPTERS
from tapstudy.instrument.partial import leading_product, patches_by_product
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.instrument.replay import Replay, relative_error
from tests.instrument.tiny_models import CLASSES, VARIANTS, make


def key(tiny):
    return type(tiny.model).__name__


def change_row(monkeypatch, tiny, **fields):
    monkeypatch.setitem(ADAPTERS, key(tiny), replace(ADAPTERS[key(tiny)], **fields))


def skip_step(tiny):
    """FLOPs and output of a skip step."""
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        tiny(**tiny.at(0, 2))
        with FlopCounterMode(display=False) as counter:
            output = tiny(**tiny.at(1, 2))
        assert handle.summary().contexts[0].mask == "F."
    return counter.get_total_flops(), output


@pytest.mark.parametrize("name", VARIANTS)
def test_the_parts_that_nobody_reads_are_not_computed(monkeypatch, name):
    """To the FLOP; with the same output as when all are computed."""
    tiny = make(name)
    path, read, parts = ADAPTERS[key(tiny)].modulation
    layer, rows = tiny.model.get_submodule(path), []
    seen = layer.register_forward_pre_hook(lambda module, args: rows.append(args[0].numel() // module.in_features))
    tiny()
    seen.remove()
    found, output = skip_step(tiny)
    change_row(monkeypatch, tiny, modulation=None)
    every, expected = skip_step(tiny)
    unread = layer.out_features - layer.out_features // parts * read
    assert unread >= layer.out_features / 2
    assert every - found == 2 * sum(rows) * layer.in_features * unread
    assert relative_error(output, expected) < 1e-6


@pytest.mark.parametrize(
    ("name", "case"),
    [("Flux2", "deeper probe"), ("Wan", "undecided"), ("DiT", "gradients"), ("Wan", "gradients"), ("DiT", "shadow")],
)
def test_all_parts_are_computed_where_somebody_may_read_them(monkeypatch, name, case):
    policy = {
        "deeper probe": Replay(probe_depth=1),
        "undecided": AdaptiveTAPPolicy(1e9, TAPConfig(interval=3, warmup_steps=2)),
    }.get(case, Replay())
    shadow, gradients = case == "shadow", case == "gradients"
    tiny = make(name)
    calls = []
    monkeypatch.setattr(
        "tapstudy.instrument.savings.leading_product",
        lambda *args, **kwargs: calls.append(1) or leading_product(*args, **kwargs),
    )
    with tapstudy.apply_policy(tiny.model, policy, shadow=shadow) as handle, torch.set_grad_enabled(gradients):
        for step in range(3):
            tiny.model(**tiny.at(step, 3))
        assert handle.summary().contexts[0].mask[-1] == ("s" if shadow else ".")
    assert not calls


@pytest.mark.parametrize("name", ["SD3.5", "PixArt-1024", "Wan2.2"])
def test_check_finds_a_row_that_computes_too_little(monkeypatch, name):
    tiny = make(name)
    path, read, parts = ADAPTERS[key(tiny)].modulation
    change_row(monkeypatch, tiny, modulation=(path, read - 1, parts))
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert any("probe of the skip step is off by nan" in problem for problem in report.problems), report


@pytest.mark.parametrize(
    ("name", "path", "parts", "problem"),
    [
        ("Flux", "norm_out.linear", 2, "true residual, is off by nan"),
        ("DiT", "proj_out_1", 2, "true residual, is off by nan"),
        ("Wan", "condition_embedder.time_embedder.linear_2", 2, "probe of the skip step is off by nan"),
    ],
)
def test_check_finds_a_layer_that_is_read_to_its_end(monkeypatch, name, path, parts, problem):
    tiny = make(name)
    change_row(monkeypatch, tiny, modulation=(path, 1, parts))
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert any(problem in found for found in report.problems), report


# Patches


def test_every_class_that_convolves_its_latent_names_that():
    def convolves(model):
        return any(isinstance(part, torch.nn.Conv2d | torch.nn.Conv3d) and part.stride == part.kernel_size
                   and part.in_channels == model.config.in_channels for part in model.modules())  # fmt: skip

    named = {name for name in CLASSES if ADAPTERS[key(make(name))].patches}
    assert named == {name for name in CLASSES if convolves(make(name).model)}
    assert named == {"CogVideoX", "DiT", "HunyuanVideo", "PixArt", "SD3", "Sana", "Wan"}


@pytest.mark.parametrize("name", ["CogVideoX", "CogVideoX1.5", "DiT", "HunyuanVideo", "Sana", "Wan2.2"])
def test_patches_of_skip_steps_are_a_product_and_lie_in_order(monkeypatch, name):
    made, convolved = [], []

    def by_product(*args):
        made.append(patches_by_product(*args))
        return made[-1]

    monkeypatch.setattr("tapstudy.instrument.savings.patches_by_product", by_product)
    tiny = make(name)
    module = tiny.model.get_submodule(ADAPTERS[key(tiny)].patches)
    if not isinstance(module, torch.nn.Linear):
        module.register_forward_pre_hook(lambda *_: convolved.append(1))
    with tapstudy.apply_policy(tiny.model, TAPPolicy(TAPConfig(interval=3, warmup_steps=2))) as handle:
        for step in range(3):
            tiny(**tiny.at(step, 3))
        assert handle.summary().contexts[0].mask == "FF."
    assert len(made) == (not isinstance(module, torch.nn.Linear))
    assert all(patches.flatten(2).mT.is_contiguous() for patches in made)


@pytest.mark.parametrize("gradients", [False, True])
def test_patches_are_left_to_the_convolution_when_undecided_or_differentiated(monkeypatch, gradients):
    monkeypatch.setattr("tapstudy.instrument.savings.patches_by_product", None)  # fails when called
    tiny = make("DiT")
    policy = Replay() if gradients else AdaptiveTAPPolicy(1e9, TAPConfig(interval=3, warmup_steps=2))
    with tapstudy.apply_policy(tiny.model, policy), torch.enable_grad() if gradients else nullcontext():
        for step in range(3):
            tiny.model(**tiny.at(step, 3)) if gradients else tiny(**tiny.at(step, 3))
