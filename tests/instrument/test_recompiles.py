"""A policy that comes and goes on a compiled model: no graph is made twice."""

from __future__ import annotations

import pytest
import torch

import tapstudy
from tapstudy.bench.speed.example_inputs import example_inputs
from tapstudy.bench.speed.subjects import EulerLoop
from tapstudy.policies.tokens.ras import RASPolicy
from tests.instrument.tiny_models import make

STEPS = 5
GRIDS = ((1, 4, 6), (1, 6, 8))


def make_small(name):
    """One without a block that is like the others: compiling takes long."""
    tiny = make(name)
    del tiny.model.transformer_blocks[1]
    return tiny


@pytest.mark.parametrize(("name", "how"), [("SD3", "whole"), ("Flux", "blocks")])
def test_policies_put_on_again_meet_their_graphs(graphs, name, how):
    tiny = make_small(name)
    model = tiny.model
    model.compile(backend=graphs) if how == "whole" else model.compile_repeated_blocks(backend=graphs)
    inputs = [example_inputs(model, grid, text=5, batch=2) for grid in GRIDS]
    loops = [EulerLoop(model, one, time_scale=1 if tiny.start == 1 else 1000) for one in inputs]
    plain = loops[0](STEPS)
    for loop in loops:
        with tapstudy.tap(loop, interval=4):
            loop(STEPS)
    made, masks = len(graphs.captured), set()
    for index in range(20):
        loop = loops[index % len(loops)]
        with tapstudy.tap(loop, interval=4) as handle:
            loop(STEPS)
        masks.add(handle.summary().mask)
    assert masks == {"FFF.."}
    assert len(graphs.captured) == made
    assert not any("forward" in vars(module) for module in model.modules())
    torch.testing.assert_close(loops[0](STEPS), plain, rtol=1e-5, atol=1e-5)


def test_blocks_compile_to_what_they_would_without_a_policy(graphs):
    """All but the probed one: hooks stand around their graphs."""
    tiny = make("Flux")
    tiny.model.compile_repeated_blocks(backend=graphs)
    tiny()
    made = len(graphs.captured)
    with tapstudy.apply_tap(tiny.model, tapstudy.TAPConfig(interval=4)) as handle:
        for step in range(STEPS):
            tiny(**{tiny.timestep: torch.full((2,), 1 - step / STEPS)})
        assert handle.summary().mask == "FFF.."
    assert len(graphs.captured) - made == 1


@pytest.mark.parametrize(("name", "how"), [("SD3", "whole"), ("Flux", "blocks")])
def test_tokens_run_apart_in_a_compiled_model(name, how):
    """Attention that keeps keys and values stays in Python; what comes out is what comes out of the model as it is."""

    def sample(compiled):
        tiny = make_small(name)
        if compiled:
            model = tiny.model
            model.compile(backend="eager") if how == "whole" else model.compile_repeated_blocks(backend="eager")
        with tapstudy.apply_policy(tiny.model, RASPolicy(0.3, dense=2)) as handle:
            outputs = torch.stack([tiny(**tiny.at(step, STEPS)) for step in range(STEPS)])
        return outputs, handle.summary().mask

    (plain, mask), (outputs, of_compiled) = sample(False), sample(True)
    assert mask == of_compiled == "FFppp"
    assert torch.equal(outputs, plain)
