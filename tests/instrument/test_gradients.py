"""Gradients: those of a full step are the model's, bit for bit; at a skip step they flow through what ran."""

from __future__ import annotations

import pytest
import torch

import tapstudy
from tapstudy import TAPConfig, apply_policy
from tapstudy.instrument.adapters import find_adapter
from tapstudy.policies.tap import TAPPolicy
from tests.instrument.replay import Replay
from tests.instrument.tiny_models import make
from tests.recording.runs import ALL, CONFIG, SIX

# frames before channels, two stacks, inner blocks, behind captions, text beside the image, a list of samples
NAMES = ["CogVideoX", "Flux2", "HiDream", "Lumina2", "SD3", "ZImage"]


def leaf(latent):
    if isinstance(latent, list):
        return [leaf(sample) for sample in latent]
    return latent.detach().clone().requires_grad_()


def flat(latent):
    return torch.stack(latent) if isinstance(latent, list) else latent


def gradients(tiny, given):
    """Of one call: of the latent and of every parameter by name, None where there is none."""
    given = {**given, tiny.latent: leaf(given[tiny.latent])}
    tiny.model.zero_grad()
    output = flat(tiny.model(**given, return_dict=False)[0])
    (output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum().backward()
    latent = given[tiny.latent]
    grads = [sample.grad for sample in latent] if isinstance(latent, list) else latent.grad
    listed = isinstance(grads, list) and grads[0] is not None
    return {"latent": torch.stack(grads) if listed else None if isinstance(grads, list) else grads} | {
        name: weight.grad for name, weight in tiny.model.named_parameters()
    }


def same(found, expected):
    return all(
        (found[name] is None) == (one is None) and (one is None or torch.equal(found[name], one))
        for name, one in expected.items()
    )


@pytest.mark.parametrize(
    ("name", "checkpointing"), [*((name, False) for name in NAMES), ("DiT", True), ("Wan2.2", True)]
)
def test_a_full_step_has_the_gradients_of_the_model(name, checkpointing):
    tiny = make(name)
    if checkpointing:
        tiny.model.enable_gradient_checkpointing()
    expected = gradients(tiny, tiny.inputs)
    assert sum(one is not None and bool(one.any()) for one in expected.values()) > 20
    for site in ("hidden", "latent"):
        with apply_policy(tiny.model, TAPPolicy(TAPConfig(residual=site))):
            assert same(gradients(tiny, tiny.inputs), expected)
            assert same(gradients(tiny, tiny.inputs), expected)  # with a history


@pytest.mark.parametrize(
    ("name", "site"),
    [
        *((name, "hidden") for name in NAMES),
        *(("SD3", site) for site in ("tail", "latent", "output")),
        ("ZImage", "latent"),
    ],
)
def test_a_skip_step_has_the_gradients_of_what_ran(name, site):
    """Against differences of the same skip step, whose prediction is a constant. (Some norms leave float64.)"""
    tiny = make(name)
    tiny.model.double()
    start, later = ({key: to_double(value) for key, value in tiny.at(step, 4).items()} for step in (0, 1))
    generator = torch.Generator().manual_seed(1)
    with apply_policy(tiny.model, Replay(site=site)) as handle, torch.no_grad():
        tiny.model(**start)
        with torch.enable_grad():
            found = gradients(tiny, later)["latent"]
        found = torch.zeros_like(flat(later[tiny.latent])) if found is None else found
        direction = torch.randn(found.shape, generator=generator, dtype=torch.float64)
        ends, masks = [], [handle.summary().contexts[0].mask]
        for sign in (1, -1):
            handle.reset()
            tiny.model(**start)
            moved = flat(later[tiny.latent]) + sign * 1e-3 * direction
            moved = list(moved) if isinstance(later[tiny.latent], list) else moved
            output = flat(tiny.model(**{**later, tiny.latent: moved}, return_dict=False)[0])
            ends.append((output * torch.linspace(-1, 1, output.numel()).view(output.shape)).sum())
            masks.append(handle.summary().contexts[0].mask)
    assert masks == ["F."] * 3
    slope = float(ends[0] - ends[1]) / 2e-3
    assert float((found * direction).sum()) == pytest.approx(slope, rel=1e-3, abs=1e-6)
    if site == "hidden":
        assert slope != 0


def to_double(value):
    if isinstance(value, list) and isinstance(value[0], torch.Tensor):
        return [to_double(item) for item in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.double() if floating else value


@pytest.mark.parametrize("site", ["hidden", "latent"])
def test_one_may_go_back_through_a_whole_run(site):
    """The history is overwritten on the way; nothing that the graph needs lies in it."""
    tiny, steps = make("SD3"), 10
    weight = tiny.model.proj_out.weight
    with apply_policy(tiny.model, TAPPolicy(TAPConfig(interval=3, warmup_steps=3, residual=site))) as handle:
        first = latent = leaf(tiny.inputs["hidden_states"])
        for step in range(steps):
            given = {**tiny.at(step, steps), "hidden_states": latent}
            latent = latent - 0.1 * tiny.model(**given, return_dict=False)[0]
        latent.square().sum().backward()
        assert handle.summary().contexts[0].mask == "FFF..F..F."
    assert first.grad.isfinite().all()
    assert first.grad.any()
    assert weight.grad.any()


@pytest.mark.parametrize(
    ("name", "site"), [("SD3", "hidden"), ("DiT", "latent"), ("Flux", "tail"), ("ZImage", "output")]
)
def test_backward_runs_where_only_blocks_are_trained(name, site):
    """As with adapters: at a skip step none of these weights has run, and gets no gradient."""
    tiny = make(name)
    tiny.model.requires_grad_(False)
    for block, _ in find_adapter(tiny.model).modules(tiny.model)[0]:
        block.requires_grad_()
    with apply_policy(tiny.model, Replay(site=site)) as handle:
        for _ in range(2):
            tiny.model.zero_grad()
            flat(tiny.model(**tiny.inputs, return_dict=False)[0]).sum().backward()
        assert handle.summary().contexts[0].mask == "F."
    tiny.model.requires_grad_(False)
    with apply_policy(tiny.model, Replay(site=site)):
        for _ in range(2):
            assert not flat(tiny.model(**tiny.inputs, return_dict=False)[0]).requires_grad


def test_no_full_step_is_kept_alive_by_the_history():
    """Its activations go with its output; blanks of idle modules stay."""
    tiny = make("Flux")
    with apply_policy(tiny.model, TAPPolicy(CONFIG)) as handle:
        tiny.model(**tiny.inputs)
        (run,) = handle._instruments["FluxTransformer2DModel"].runs.values()
        kept = [one for outputs in run.blanks.values() for one in outputs]
        assert kept
        assert not any(isinstance(one, torch.Tensor) and one.requires_grad for one in kept)


def test_listeners_get_plain_tensors():
    tiny, events = make("Flux"), []
    with apply_policy(tiny.model, TAPPolicy(CONFIG), shadow=True) as handle:
        handle.record(events.append, depths=(0, 1), latent=True)
        for step in range(5):
            tiny.model(**tiny.at(step, 5))
    for event in events:
        tensors = [event.probe, event.residual, event.latent, *event.probes.values()]
        assert not any(tensor.requires_grad for tensor in tensors)


def test_a_recording_needs_no_no_grad(tmp_path, tiny_pipe):
    """A pipeline of one's own may not switch gradients off."""
    kind = type(tiny_pipe)
    expected = tapstudy.record(tiny_pipe, SIX[:1], tmp_path / "plain", fields=ALL, config=CONFIG, progress=False)

    class WithGradients(kind):
        def __call__(self, *args, **kwargs):
            with torch.enable_grad():
                return kind.__call__.__wrapped__(self, *args, **kwargs)

    tiny_pipe.__class__ = WithGradients
    tiny_pipe.transformer.register_forward_hook(lambda module, args, output: (output[0].detach(),))
    found = tapstudy.record(tiny_pipe, SIX[:1], tmp_path / "run", fields=ALL, config=CONFIG, progress=False)
    for name in ("probe", "residual", "choice"):
        assert float(abs(found[name] - expected[name]).max()) < 1e-4
