"""Models split over two GPUs, as accelerate does it and by hand."""

from __future__ import annotations

import accelerate.hooks
import pytest
import torch
from torch import nn

import tapstudy
from tapstudy import TAPConfig
from tapstudy.bench.speed.subjects import EulerLoop
from tapstudy.instrument.adapters import find_adapter
from tests.instrument.tiny_models import make


def split(trace, model: nn.Module) -> None:
    """Put the second half of the blocks, and what follows them, on the second GPU."""
    adapter = find_adapter(model)
    blocks = [block for block, _ in adapter.modules(model)[0]]
    children = dict(model.named_children())
    tail = [child for name, child in children.items() if name.startswith(("norm_out", "proj_out"))]
    later = blocks[len(blocks) // 2 :] + tail
    for module in later:
        trace.on(module, "cuda:1")
    for module in [*blocks, *(child for name, child in children.items() if name not in adapter.blocks)]:
        device = "cuda:1" if module in later else "cuda:0"
        hook = accelerate.hooks.AlignDevicesHook(execution_device=device, io_same_device=False)
        accelerate.hooks.add_hook_to_module(module, hook)
    whole = accelerate.hooks.AlignDevicesHook(execution_device="cuda:0", io_same_device=True)
    accelerate.hooks.add_hook_to_module(model, whole)


HIDDEN, LATENT, DEEP = {}, {"residual": "latent"}, {"probe_depth": 2}


def test_a_model_split_by_hooks_of_torch(gpus):
    """They come before those of the handle: nothing brings to the tail's GPU what takes the place of its input."""
    tiny = make("SD3")
    with gpus() as trace:
        model = trace.on(tiny.model)
        loop = EulerLoop(model, trace.on(tiny.inputs), time_scale=tiny.start)
        later = [model.transformer_blocks[-1], model.norm_out, model.proj_out]
        for module in later:
            trace.on(module, "cuda:1")
            module.register_forward_pre_hook(bring, with_kwargs=True)
        model.register_forward_hook(lambda module, args, output: (output[0].to("cuda:0"),))
        with tapstudy.apply_tap(loop, TAPConfig(interval=4)) as handle:
            assert loop(5).device == torch.device("cuda:0")
        assert handle.summary().mask == "FFF.."


def bring(module, args, kwargs):
    """Bring what a module is given to the second GPU."""
    return accelerate.utils.send_to_device((args, kwargs), "cuda:1")


@pytest.mark.parametrize(
    ("name", "when", "settings"),
    [("Flux", "before", HIDDEN), ("Wan", "before", LATENT), ("Flux", "after", DEEP), ("Wan", "after", HIDDEN)],
)
def test_a_split_model_runs_under_a_handle_put_on(gpus, name, when, settings):
    tiny = make(name)
    with gpus() as trace:
        model = trace.on(tiny.model)
        loop = EulerLoop(model, trace.on(tiny.inputs), time_scale=tiny.start)
        if when == "before":
            split(trace, model)
        with tapstudy.apply_tap(loop, TAPConfig(interval=4, **settings)) as handle:
            if when == "after":
                split(trace, model)
            assert loop(5).device == torch.device("cuda:0")
        assert handle.summary().mask == "FFF.."
        assert handle.summary().contexts[0].fail_opens == {}
