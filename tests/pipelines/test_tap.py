"""TAP on pipelines, driven the way a user does."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn

import tapstudy
from tapstudy.instrument.adapters import find_adapter
from tests.pipelines.tiny import STEPS, Built, sample

# DPMSolverMultistepScheduler hands torch tensors to numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CONFIG = tapstudy.TAPConfig(interval=4, warmup_steps=2)

# S(4, 2), and the masks by transformer and context, of pipelines that are not among the examples. Where one names
# no context, "default" is the instrument's name for it; a context that stops early has the first letters of the mask.
S = "FF...F...F...F"
ONE = {("transformer", "default"): S[:STEPS]}
TWO = {("transformer", context): S[:STEPS] for context in ("cond", "uncond")}
BATCHED = {("transformer", "cond_uncond"): S[:STEPS]}
MASKS: dict[str, dict[tuple[str, str], str]] = {
    "dit": ONE,
    "pixart_alpha": ONE,
    # with layers left out (steps 1 to 5) every call runs in full
    "stable_diffusion_3_skip_layer_guidance": ONE | {("transformer", "skip_layers"): "FFFFF"},
    "stable_diffusion_3_heun": {("transformer", "default"): S[:13]},
    "flux_true_cfg": TWO,
    "flux_img2img": {("transformer", "default"): S[:9]},
    "flux_kontext": ONE,
    "flux2_klein": TWO,
    # the boundary lies in the middle; each transformer counts its own steps
    "wan22": {(f"transformer{i}", context): S[:6] for i in ("", "_2") for context in ("cond", "uncond")},
    "cogvideox": BATCHED,
    "ltx": BATCHED,
    "sana": ONE,
    # guidance ends after three quarters of the steps
    "lumina2": ONE | {("transformer", "context-1"): S[:9]},
    # the batch shrinks to its guided half, which is a context of its own
    "z_image_truncated": {("transformer", "default"): S[:8], ("transformer", "context-1"): S[:4]},
}


@pytest.fixture(autouse=True)
def supported(built: Built) -> None:
    pipe, _ = built
    if not transformers(pipe):
        pytest.skip(f"no adapter for {type(pipe.transformer).__name__}")


def transformers(pipe: Any) -> dict[str, nn.Module]:
    return {
        name: part
        for name, part in pipe.components.items()
        if isinstance(part, nn.Module) and find_adapter(part) is not None
    }


def masks(handle: tapstudy.Handle) -> dict[tuple[str, str], str]:
    return {(entry.transformer, entry.context): entry.mask for entry in handle.summary().contexts}


@pytest.mark.parametrize(("built", "expected"), MASKS.items(), indirect=["built"], ids=list(MASKS))
def test_skips_as_scheduled(built: Built, expected: dict[tuple[str, str], str]) -> None:
    """And no history outlives a run."""
    pipe, call = built
    ran: Counter[str] = Counter()
    watches = []
    for name, model in transformers(pipe).items():
        blocks, _ = find_adapter(model).modules(model)
        # a layer inside the last block runs only when the block does: no hook of ours sits on it
        layer = next(module for module in blocks[-1][0].modules() if isinstance(module, nn.Linear))
        watches.append(layer.register_forward_hook(lambda *_, name=name: ran.update([name])))
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        sample(pipe, call)
        for watch in watches:
            watch.remove()
        assert masks(handle) == expected
        full: Counter[str] = Counter()
        for (name, _), mask in expected.items():
            full[name] += mask.count("F")
        assert ran == full
        assert all(not entry.fail_opens for entry in handle.summary().contexts if entry.context != "skip_layers")
        runs = [run for instrument in handle._instruments.values() for run in instrument.runs.values()]
        assert any(run.cache_bytes > 0 for run in runs)
        assert all(run.policy.cache_bytes == 0 for run in runs)


# guidance in one batch, in two calls, and by two transformers
KINDS = ["dit", "flux_true_cfg", "wan22"]


@pytest.mark.parametrize("built", KINDS, indirect=True)
def test_full_steps_change_nothing_and_removal_leaves_no_trace(built: Built) -> None:
    pipe, call = built
    reference = sample(pipe, call)
    parts = [module for model in transformers(pipe).values() for module in model.modules()]
    attributes = [set(vars(module)) for module in parts]
    handle = tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=1, warmup_steps=2))
    assert torch.equal(sample(pipe, call), reference)
    assert all(set(mask) == {"F"} for mask in masks(handle).values())
    handle.remove()
    # fewer is fine: a plain run of some classes leaves an empty register of hooks behind
    assert all(set(vars(module)) <= before for module, before in zip(parts, attributes, strict=True))
    assert torch.equal(sample(pipe, call), reference)


@pytest.mark.parametrize(
    ("built", "settings"),
    [
        ("dit", {}),
        ("flux_true_cfg", {"residual": "latent"}),
        ("wan22", {"probe_depth": 1}),
    ],
    indirect=["built"],
)
def test_image_is_near_the_reference(built: Built, settings: dict[str, Any]) -> None:
    pipe, call = built
    call = call | {"num_inference_steps": 2 * STEPS}
    reference = sample(pipe, call)
    with tapstudy.apply_tap(pipe, dataclasses.replace(CONFIG, **settings)):
        accelerated = sample(pipe, call)
    assert torch.isfinite(accelerated).all()
    assert not torch.equal(accelerated, reference)
    # unrelated seeds correlate at 0.7 or less
    correlation = torch.corrcoef(torch.stack([accelerated.flatten(), reference.flatten()]))[0, 1]
    assert correlation > 0.85
