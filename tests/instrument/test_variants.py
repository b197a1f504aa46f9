"""What else people do to a transformer: checkpointing, compilation, casting, offloading. TAP still skips, exactly."""

from __future__ import annotations

import contextlib

import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from packaging.version import Version

import tapstudy
from tests.instrument.replay import Replay, relative_error, steps
from tests.instrument.tiny_models import make

CPU = torch.device("cpu")
T = 6
CONFIG = tapstudy.TAPConfig(interval=3, warmup_steps=2)
MASK = "FF..F."


def trajectory(tiny, handle=None, *, name=None):
    """Outputs of T steps, inside a named context if there is a name."""
    with handle.context(name) if name else contextlib.nullcontext():
        return [tiny(**tiny.at(step, T)) for step in range(T)]


def eager_tap(name):
    """What TAP gives on the plain model."""
    tiny = make(name)
    with tapstudy.apply_tap(tiny.model, CONFIG):
        return trajectory(tiny)


def assert_skips(handle):
    assert {summary.mask for summary in handle.summary().contexts} == {MASK}


# Gradient checkpointing


@pytest.mark.parametrize("name", ["Flux", "ZImage"])
def test_gradient_checkpointing(name):
    tiny = make(name)
    plain = tiny()
    tiny.model.enable_gradient_checkpointing()

    def call():
        sample = tiny.model(**tiny.inputs, return_dict=False)[0]  # gradients on
        return torch.stack(sample) if isinstance(sample, list) else sample

    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        full, skip = call(), call()
        assert handle.summary().contexts[0].mask == "F."
    assert relative_error(full.detach(), plain) < 1e-5
    assert relative_error(skip.detach(), plain) < 1e-5
    skip.sum().backward()  # reaches what ran: the embedders and the tail
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in tiny.model.parameters())


# torch.compile, with a backend that runs what it captured


def test_blocks_compiled_under_a_policy(graphs):
    expected = eager_tap("Flux")
    tiny = make("Flux")
    with tapstudy.apply_tap(tiny.model, CONFIG) as handle:
        tiny.model.compile_repeated_blocks(backend=graphs, fullgraph=True)
        outputs = trajectory(tiny)
        assert_skips(handle)
    assert len(graphs.captured) > 0
    for output, reference in zip(outputs, expected, strict=True):
        assert relative_error(output, reference) < 1e-5


@pytest.mark.parametrize(("name", "how", "context"), [("Wan", "in place", "cond"), ("SD3", "wrapper", None)])
def test_compiled_model_really_skips(graphs, name, how, context):
    expected = eager_tap(name)
    tiny = make(name)
    if how == "wrapper":
        compiled = torch.compile(tiny.model, backend=graphs)
    else:
        tiny.model.compile(backend=graphs)
        compiled = tiny.model
    caller = type(tiny)(compiled, tiny.inputs, tiny.tokens, tiny.latent, tiny.timestep, tiny.start, tiny.end)
    with tapstudy.apply_tap(compiled, CONFIG) as handle:
        outputs = trajectory(caller, handle, name=context)
        assert_skips(handle)
    assert any(_multiplies(graph) for graph in graphs.captured)  # the blocks are in some graph, not left to Python
    for output, reference in zip(outputs, expected, strict=True):
        assert relative_error(output, reference) < 1e-5


def _multiplies(graph):
    """Whether the graph holds several attentions."""
    names = [str(node.target) for node in graph.graph.nodes]
    return sum("scaled_dot_product_attention" in name for name in names) >= 2


def test_compiled_blocks_with_the_residual_in_latent_space(graphs):
    tiny = make("Wan")
    plain = tiny()
    tiny.model.compile_repeated_blocks(backend=graphs)
    (full, skip), events = steps(tiny, Replay(site="latent"))
    assert [event.kind for event in events] == ["full", "skip"]
    assert max(relative_error(full, plain), relative_error(skip, plain)) < 1e-5


def test_one_graph_for_the_whole_model_is_refused(graphs):
    tiny = make("Wan")
    compiled = torch.compile(tiny.model, backend=graphs, fullgraph=True)
    with (
        tapstudy.apply_tap(compiled, CONFIG),
        pytest.raises(torch._dynamo.exc.Unsupported, match="compile the model without fullgraph=True"),
    ):
        compiled(**tiny.inputs)


# Storage


@pytest.mark.parametrize(("name", "first"), [("Flux", "casting"), ("ZImage", "tap")])
def test_fp8_layerwise_casting(name, first):
    tiny = make(name)

    def cast():
        tiny.model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    if first == "casting":
        cast()
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        if first == "tap":
            cast()
        full, skip = tiny(), tiny()
        assert handle.summary().contexts[0].mask == "F."
    assert torch.equal(full, tiny())
    assert relative_error(skip, full) < 1e-5


@pytest.mark.skipif(
    Version(diffusers.__version__) < Version("0.42") and not torch.accelerator.is_available(),
    reason="group offloading of this diffusers needs an accelerator",
)
@pytest.mark.parametrize(
    ("name", "kind", "first"),
    [
        ("Flux", "block_level", "offload"),
        ("Lumina2", "leaf_level", "tap"),
    ],
)
def test_group_offloading(name, kind, first):
    tiny = make(name)
    plain = tiny()

    def offload():
        blocks = {"num_blocks_per_group": 1} if kind == "block_level" else {}
        apply_group_offloading(
            tiny.model, onload_device=CPU, offload_device=CPU, offload_type=kind, **blocks
        )  # fmt: skip

    if first == "offload":
        offload()
    with tapstudy.apply_policy(tiny.model, Replay(full=(0, 2))) as handle:
        if first == "tap":
            offload()
        outputs = [tiny() for _ in range(4)]
        assert handle.summary().contexts[0].mask == "F.F."
    assert torch.equal(outputs[0], plain)
    assert max(relative_error(output, plain) for output in outputs) < 1e-5
    assert torch.equal(tiny(), plain)  # removal leaves the offloading as it was
