"""Work that a skip step saves in the model's own modules changes no bit of what is sampled."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.instrument.adapters import ADAPTERS
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.tap import TAPPolicy

CONFIG = TAPConfig(interval=4)
POLICIES = {
    "hidden": TAPPolicy(CONFIG),
    "latent": TAPPolicy(replace(CONFIG, residual="latent")),
    "deeper": TAPPolicy(replace(CONFIG, probe_depth=1)),
    "no probe": FixedPolicy(1, config=CONFIG),
    "undecided": AdaptiveTAPPolicy(0.5, CONFIG),
}


@pytest.mark.parametrize("name", POLICIES)
def test_samples_are_bit_equal_without_it(monkeypatch, tiny_pipe, sample, name):
    row = ADAPTERS["DiTTransformer2DModel"]
    assert row.once
    with apply_policy(tiny_pipe, POLICIES[name]) as handle:
        saving = sample()
        assert handle.summary().contexts[0].num_skipped > 5
    monkeypatch.setitem(ADAPTERS, "DiTTransformer2DModel", replace(row, once=()))
    with apply_policy(tiny_pipe, POLICIES[name]):
        assert torch.equal(sample(), saving)


def test_conditioning_is_embedded_once_in_a_skip_step(tiny_pipe, sample):
    calls, per_step = [], []
    blocks = tiny_pipe.transformer.transformer_blocks
    blocks[0].norm1.emb.timestep_embedder.register_forward_hook(lambda *_: calls.append(1))
    with apply_policy(tiny_pipe, POLICIES["hidden"]) as handle:
        handle.listen(lambda event: (per_step.append((event.kind, len(calls))), calls.clear()))
        sample()
    assert set(per_step) == {("full", 2), ("skip", 1)}


def test_other_arguments_are_not_taken_for_the_same(tiny_pipe, sample):
    """A model that asks for another embedding in its tail gets it."""
    model = tiny_pipe.transformer
    embedding = model.transformer_blocks[0].norm1.emb
    outputs = []
    embedding.timestep_embedder.register_forward_hook(lambda _module, args, _out: outputs.append(args[0].clone()))

    def ask(_module, _args):
        embedding(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), hidden_dtype=torch.float32)

    model.norm_out.register_forward_pre_hook(ask)
    per_step = []
    with apply_policy(tiny_pipe, POLICIES["hidden"]) as handle:
        handle.listen(lambda event: (per_step.append((event.kind, len(outputs))), outputs.clear()))
        sample()
    assert set(per_step) == {("full", 3), ("skip", 2)}


def test_tokens_of_a_skip_step_lie_in_order(tiny_pipe, sample):
    """Then nothing is reordered behind the patches."""
    starts, kinds = [], []
    tiny_pipe.transformer.pos_embed.register_forward_hook(lambda _m, _a, out: starts.append(out.is_contiguous()))
    with apply_policy(tiny_pipe, POLICIES["hidden"]) as handle:
        handle.listen(lambda event: kinds.append(event.kind))
        sample()
    assert all(inside for inside, kind in zip(starts, kinds, strict=True) if kind == "skip")
