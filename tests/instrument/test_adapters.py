"""Every supported class: the hooks read the right tensors, put them back in the right place, and leave no trace."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from math import prod
from types import SimpleNamespace

import diffusers
import pytest
import torch
from torch import nn

import tapstudy
from tapstudy.instrument.adapters import ADAPTERS, Adapter, find_adapter
from tests.instrument.replay import Replay, relative_error, steps
from tests.instrument.tiny_models import CLASSES, FIRST, KINDS, make
from tests.table import each_row


def test_a_tiny_model_for_every_row():
    assert {type(make(name).model).__name__ for name in CLASSES} == {row for row in ADAPTERS if hasattr(diffusers, row)}
    assert len(FIRST) == 13


GRIDS = {
    **dict.fromkeys(KINDS, (1, 4, 6)),
    **dict.fromkeys(("CogVideoX", "FramePack", "Kandinsky5", "Wan"), (3, 2, 3)),
    **dict.fromkeys(("DiT", "HiDream"), (1, 4, 4)),
}


def _heavy(model: nn.Module, adapter: Adapter) -> dict[nn.Module, str]:
    """Attention and feed-forward modules inside the blocks, by class, and the parts they are made of."""
    found = {}
    for name in adapter.blocks:
        for path, module in model.get_submodule(name).named_modules(prefix=name):
            if any(word in type(module).__name__ for word in ("Attention", "FeedForward", "GLUMBConv")):
                found.update({part: f"{path}.{inner}" for inner, part in module.named_modules()})
    return found


def _ran(tiny, modules):
    """Paths of the modules that finish during one call."""
    done = set()
    handles = [module.register_forward_hook(lambda m, *_: done.add(modules[m])) for module in modules]
    tiny()
    for handle in handles:
        handle.remove()
    return done


@pytest.mark.parametrize("name", KINDS)
def test_an_exact_residual_gives_the_full_output_at_every_depth(name):
    """Full steps are bit equal, the probe is the one of the depth and has the image's tokens, at both sites."""
    tiny = make(name)
    plain = tiny()
    depths = sum(len(tiny.model.get_submodule(part)) for part in find_adapter(tiny.model).blocks)
    probes = []
    for depth in range(depths):
        for site in ("hidden", "latent"):
            (full, skip), events = steps(tiny, Replay(site=site, probe_depth=depth))
            assert torch.equal(full, plain)
            assert [event.kind for event in events] == ["full", "skip"]
            assert relative_error(skip, plain) < 1e-5
            assert relative_error(events[1].probe, events[0].probe) == 0
            for event in events:
                assert prod(event.grid) == tiny.tokens == event.probe.shape[1]
                assert event.grid == GRIDS[name]
            assert events[0].residual.shape[:2] == (2, tiny.tokens)
        probes.append(events[0].probe)
    assert all(not torch.equal(probes[0], probe) for probe in probes[1:])
    with pytest.raises(ValueError, match="beyond the last block"):
        tapstudy.apply_policy(tiny.model, Replay(probe_depth=depths))


@pytest.mark.parametrize("name", ["CogVideoX", "Flux2", "HiDream", "Kandinsky5", "ZImage"])
def test_blocks_are_skipped_the_residual_matters_and_removal_leaves_no_trace(name):
    """No attention and no feed-forward runs at a skip step; twice the residual is another output."""

    def traces():
        return {path: sorted(vars(module)) for path, module in tiny.model.named_modules()}

    tiny = make(name)
    plain, before, keys = tiny(), traces(), list(tiny.model.state_dict())
    heavy = _heavy(tiny.model, find_adapter(tiny.model))
    for site in ("hidden", "latent"):
        handle = tapstudy.apply_policy(tiny.model, Replay(site=site, factor=2.0))
        assert len(_ran(tiny, heavy)) >= 2 * 3  # the full step: attention and feed-forward in every block
        assert _ran(tiny, heavy) == set()
        assert relative_error(tiny(), plain) > 1e-2
        assert traces() != before
        handle.remove()
        handle.remove()  # twice does no harm
        assert traces() == before
        assert list(tiny.model.state_dict()) == keys
        assert torch.equal(tiny(), plain)


@pytest.mark.parametrize("name", ["DiT", "Flux", "Lumina2", "ZImage"])
def test_without_a_probe_no_module_of_any_block_runs(name):
    tiny = make(name)
    inside = {
        module: path
        for part in find_adapter(tiny.model).blocks
        for path, module in tiny.model.get_submodule(part).named_modules(prefix=part)
        if path.count(".") >= 2
    }
    if name == "DiT":  # its tail reads the first block's timestep embedder
        inside = {module: path for module, path in inside.items() if ".norm1.emb" not in path}
    plain = tiny()
    with tapstudy.apply_policy(tiny.model, Replay(needs_probe=False)):
        tiny()
        assert _ran(tiny, inside) == set()
        assert relative_error(tiny(), plain) < 1e-5


@pytest.mark.parametrize("name", ["DiT", "Flux", "Lumina2", "Wan"])
def test_half_precision_round_trip(name):
    """The residual is kept in float32, so that even bf16 models get back exactly what they computed."""
    tiny = make(name)
    model = tiny.model.to(torch.bfloat16)
    cast = {key: _to_bf16(value) for key, value in tiny.inputs.items()}
    tiny = type(tiny)(model, cast, tiny.tokens, tiny.latent, tiny.timestep)
    plain = tiny()
    (full, skip), events = steps(tiny, Replay())
    assert torch.equal(full, plain)
    assert events[1].kind == "skip"
    assert torch.equal(skip, plain)
    assert skip.dtype == torch.bfloat16


def _to_bf16(value):
    if isinstance(value, list) and isinstance(value[0], torch.Tensor):
        return [_to_bf16(item) for item in value]
    floating = isinstance(value, torch.Tensor) and value.is_floating_point()
    return value.to(torch.bfloat16) if floating else value


# Registering


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attention = nn.Linear(width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states + self.self_attention(torch.tanh(hidden_states))


class HomeMade(nn.Module):
    """A transformer that diffusers has never heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = nn.ModuleList(_Block(8) for _ in range(3))
        self.last = nn.LayerNorm(8)

    def forward(self, hidden_states, timestep, return_dict=True):
        shape = hidden_states.shape
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, N, C)
        for block in self.stack:
            hidden_states = block(hidden_states)
        return (self.last(hidden_states).transpose(1, 2).view(shape),)


HOME_MADE = Adapter(
    ("stack",), lambda model, arguments: (1, *arguments["hidden_states"].shape[2:]), attention="self_attention",
    tail="last",
)  # fmt: skip
HOME_INPUTS = {"hidden_states": torch.linspace(-1, 1, 2 * 8 * 12).view(2, 8, 3, 4), "timestep": torch.tensor(1.0)}


@pytest.fixture
def registered():
    """Registers a row for the length of a test."""
    names = []

    def register(model, adapter):
        tapstudy.register_adapter(model, adapter)
        names.append(model)

    yield register
    for name in {name if isinstance(name, str) else name.__name__ for name in names}:
        tapstudy.unregister_adapter(name)


@each_row("by", [HomeMade, "HomeMade"])
def test_register_adapter(by):
    for _ in range(2):
        with pytest.raises(TypeError, match=r"no supported transformer in HomeMade.*register_adapter"):
            tapstudy.check(HomeMade(), HOME_INPUTS)
        tapstudy.register_adapter(by, HOME_MADE)
        tapstudy.register_adapter(by, HOME_MADE)  # the last one counts
        report = tapstudy.check(HomeMade(), HOME_INPUTS)
        assert report.ok, report
        assert report.sites[0].grid == (1, 3, 4)
        tapstudy.unregister_adapter(by)
    with pytest.raises(ValueError, match="no adapter was registered for HomeMade"):
        tapstudy.unregister_adapter(by)


def test_unregistering_brings_back_the_row_of_the_package(registered):
    row = ADAPTERS["WanTransformer3DModel"]
    tapstudy.register_adapter("WanTransformer3DModel", HOME_MADE)
    tapstudy.register_adapter("WanTransformer3DModel", row)
    tapstudy.unregister_adapter("WanTransformer3DModel")
    assert ADAPTERS["WanTransformer3DModel"] is row
    with pytest.raises(ValueError, match="no adapter was registered for Wan"):
        tapstudy.unregister_adapter("WanTransformer3DModel")
    with pytest.raises(TypeError, match="unregister_adapter needs a torch module class"):
        tapstudy.unregister_adapter(3)


@pytest.mark.parametrize(("name", "grid"), [("Flux", (1, 1, 24)), ("Wan", (3, 2, 3))])
def test_a_row_without_a_grid_says_so(registered, name, grid):
    """Packed tokens count as one row; a latent with rows and columns has a grid that is known."""
    tiny = make(name)
    cls = type(tiny.model).__name__
    registered(cls, replace(ADAPTERS[cls], grid=Adapter(("blocks",)).grid))
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert report.ok, report
    assert {site.grid for site in report.sites} == {grid}
    assert ("NOTICE     the adapter names no grid" in str(report)) == (grid[:2] == (1, 1))
    notices = pytest.warns(UserWarning, match="tokens count as one long row")
    with notices if grid[:2] == (1, 1) else contextlib.nullcontext():
        (_, skip), _ = steps(tiny, Replay())
    assert relative_error(skip, tiny()) < 1e-5


def test_no_grid_and_no_way_to_guess_one(registered):
    registered(HomeMade, replace(HOME_MADE, grid=Adapter(("stack",), latent="x").grid))
    report = tapstudy.check(HomeMade(), HOME_INPUTS)
    assert any("KeyError" in problem for problem in report.problems)
    registered(HomeMade, replace(HOME_MADE, grid=Adapter(("stack",)).grid))
    inputs = {**HOME_INPUTS, "hidden_states": HOME_INPUTS["hidden_states"].view(2, 8, 3, 4)}
    report = tapstudy.check(HomeMade(), inputs)
    assert any("the adapter names no grid, and hidden_states is not packed" in problem for problem in report.problems)


def test_a_u_net_is_told_why_and_what_to_use():
    class UNet2DConditionModel(nn.Module):
        pass

    pipe = SimpleNamespace(components={"unet": UNet2DConditionModel()})
    with pytest.raises(TypeError, match=r"is a U-Net, which TAP does not support: .* Use a pipeline with a diffusion"):
        tapstudy.apply_tap(pipe)


def test_register_adapter_refuses():
    for model, adapter, message in (
        (HomeMade, "row", "needs an Adapter"),
        (HomeMade(), HOME_MADE, "class"),
        (dict, HOME_MADE, "class"),
    ):
        with pytest.raises(TypeError, match=message):
            tapstudy.register_adapter(model, adapter)


def test_adapter_checks_itself():
    with pytest.raises(ValueError, match="streams needs one entry per block list, got 1 for the 2 lists"):
        Adapter(("a", "b"), lambda model, arguments: (1, 1, 1))


def test_a_subclass_uses_the_row_of_its_base():
    base = type(make("Wan").model)
    assert find_adapter(type("MyWan", (base,), {})(num_layers=1, num_attention_heads=1)) is ADAPTERS[base.__name__]
