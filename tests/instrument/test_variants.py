"""What else people do to a transformer: checkpointing, compilation, casting, offloading. TAP still skips, exactly."""

from __future__ import annotations

import contextlib

import accelerate
import pytest
import torch
from diffusers.hooks import apply_group_offloading

import tapstudy
from tests.instrument.replay import Replay, relative_error
from tests.instrument.tiny_models import CLASSES, make

CPU = torch.device("cpu")
T = 8
CONFIG = tapstudy.TAPConfig(interval=3, warmup_steps=2)
MASK = "FF..F..F"


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


@pytest.mark.parametrize("name", CLASSES)
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


@pytest.fixture
def graphs():
    """A backend that keeps the graphs it was given."""
    torch._dynamo.reset()
    captured = []

    def backend(graph, example_inputs):
        captured.append(graph)
        return graph.forward

    backend.captured = captured
    yield backend
    torch._dynamo.reset()


@pytest.mark.parametrize("first", ["compile", "tap"])
@pytest.mark.parametrize("name", ["Flux", "Wan"])
def test_compiled_blocks(graphs, name, first):
    expected = eager_tap(name)
    tiny = make(name)
    if first == "compile":
        tiny.model.compile_repeated_blocks(backend=graphs, fullgraph=True)
    with tapstudy.apply_tap(tiny.model, CONFIG) as handle:
        if first == "tap":
            tiny.model.compile_repeated_blocks(backend=graphs, fullgraph=True)
        outputs = trajectory(tiny)
        assert_skips(handle)
    assert len(graphs.captured) > 0
    for output, reference in zip(outputs, expected, strict=True):
        assert relative_error(output, reference) < 1e-5


@pytest.mark.parametrize("context", [None, "cond"])
@pytest.mark.parametrize("how", ["wrapper", "in place"])
@pytest.mark.parametrize("name", ["Flux", "Wan", "SD3"])
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


def test_compiled_model_with_fullgraph_is_refused_by_name(graphs):
    tiny = make("Wan")
    compiled = torch.compile(tiny.model, backend=graphs, fullgraph=True)
    with (
        tapstudy.apply_tap(compiled, CONFIG) as handle,
        pytest.raises(torch._dynamo.exc.Unsupported, match="new_forward"),
    ):
        compiled(**tiny.inputs)
    del handle


# Storage


@pytest.mark.parametrize("name", ["Flux", "Wan", "SD3", "ZImage"])
@pytest.mark.parametrize("first", ["casting", "tap"])
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


@pytest.mark.parametrize("name", ["Flux", "Wan", "SD3", "Lumina2"])
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", ["offload", "tap"])
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


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("first", ["offload", "tap"])
def test_accelerate_cpu_offload(name, first):
    """Weights live in a state dict and are brought in for every module's forward."""
    tiny = make(name)
    plain = tiny()
    if first == "offload":
        accelerate.cpu_offload(tiny.model, execution_device=CPU)
    with tapstudy.apply_policy(tiny.model, Replay(full=(0, 2))) as handle:
        if first == "tap":
            accelerate.cpu_offload(tiny.model, execution_device=CPU)
        outputs = [tiny() for _ in range(4)]
        assert handle.summary().contexts[0].mask == "F.F."
    assert torch.equal(outputs[0], plain)
    assert max(relative_error(output, plain) for output in outputs) < 1e-5
