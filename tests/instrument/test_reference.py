"""TAP on whole trajectories against an independent reference: float64, plain loops, every candidate built in full."""

from __future__ import annotations

import math

import pytest
import torch

import tapstudy
from tests.instrument.tiny_models import make

T, INTERVAL, FULL = 12, 4, (0, 1, 2, 6, 10)  # w = 3: 0, 1, 2, then 2 + N, 2 + 2 N

# class: (first block, its attention, tail)
PLACES = {
    "Flux": ("transformer_blocks.0", "transformer_blocks.0.attn", "norm_out"),
    "SD3": ("transformer_blocks.0", "transformer_blocks.0.attn", "norm_out"),
    "Wan": ("blocks.0", "blocks.0.attn1", "norm_out"),
}


def first_argument(args, kwargs):
    return args[0] if args else kwargs["hidden_states"]


def full_pass(tiny, name, step):
    """Output, probe h, and the hidden states that enter the first block and the tail, float64."""
    seen = {}

    def look(what):
        def hook(module, args, kwargs):
            seen[what] = first_argument(args, kwargs).double()

        return hook

    handles = [
        tiny.model.get_submodule(path).register_forward_pre_hook(look(what), with_kwargs=True)
        for what, path in zip(("start", "probe", "tail"), PLACES[name], strict=True)
    ]
    output = tiny(**tiny.at(step, T))
    for handle in handles:
        handle.remove()
    return output, seen["probe"], seen["start"], seen["tail"]


def output_for(tiny, name, step, tail):
    """What the model returns when its tail is fed with `tail`."""

    def replace(module, args, kwargs):
        new = tail.to(first_argument(args, kwargs).dtype)
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})

    handle = tiny.model.get_submodule(PLACES[name][2]).register_forward_pre_hook(replace, with_kwargs=True)
    output = tiny(**tiny.at(step, T))
    handle.remove()
    return output


def differences(history):
    """D_0, D_1, D_2 at the newest of [(step, F), ...], oldest first: the recursion run at every full step in turn."""
    newest = []
    for (step, value), before in zip(history, [None, *history], strict=False):
        now = [value]
        if before is not None:
            for lower in newest[:2]:
                now.append((now[-1] - lower) / (step - before[0]))
        newest = now
    return newest


def extrapolate(d, order, horizon):
    return sum(d[j] * horizon**j / math.factorial(j) for j in range(order + 1))


def cosine_distance(a, b):
    return 1 - torch.dot(a, b) / (a.norm() * b.norm())


def reference(tiny, name):
    """Outputs and choices, (sample, token) -> index into orders x shifts, of TAP along the trajectory."""
    history, outputs, choices = [], [], []
    for step in range(T):
        output, h, start, tail = full_pass(tiny, name, step)
        if step in FULL:
            history.append((step, h, tail - start))
            outputs.append(output)
            choices.append(None)
            continue
        last = history[-1][0]
        residual = torch.zeros_like(start)
        chosen = torch.zeros(start.shape[:2], dtype=torch.int64)
        for b in range(start.shape[0]):
            for n in range(start.shape[1]):
                d_h = differences([(i, probe[b, n]) for i, probe, _ in history])
                d_r = differences([(i, r[b, n]) for i, _, r in history])
                best = math.inf
                for order in (0, 1, 2):
                    for shift in (0, 1, 2, 3, 4):
                        horizon = step - last - shift
                        loss = float(cosine_distance(extrapolate(d_h, order, horizon), h[b, n]))
                        if loss < best:
                            best = loss
                            chosen[b, n] = 5 * order + shift
                            residual[b, n] = extrapolate(d_r, order, horizon)
        outputs.append(output_for(tiny, name, step, start + residual))
        choices.append(chosen)
    return outputs, choices


@pytest.mark.parametrize("name", PLACES)
def test_tap_agrees_with_the_reference(name):
    tiny = make(name)
    expected, expected_choices = reference(tiny, name)
    events = []
    with tapstudy.apply_tap(tiny.model, tapstudy.TAPConfig(interval=INTERVAL)) as handle:
        handle.listen(events.append)
        outputs = [tiny(**tiny.at(step, T)) for step in range(T)]
        (summary,) = handle.summary().contexts
    assert summary.mask == "FFF...F...F."
    taken = set()
    for step in range(T):
        if step in FULL:
            assert torch.equal(outputs[step], expected[step])
            continue
        assert torch.equal(events[step].prediction.choice, expected_choices[step])
        torch.testing.assert_close(outputs[step], expected[step], rtol=1e-4, atol=1e-5)
        taken.update(expected_choices[step].flatten().tolist())
    assert len(taken) >= 4  # the path bends enough that tokens disagree
    assert any(len(choice.unique()) > 1 for choice in expected_choices if choice is not None)
