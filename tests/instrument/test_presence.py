"""Where a policy is, and is not: offloaded pipelines, other caches, replaced forwards, other transformers, copies."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import io
import pickle
import types
import weakref

import diffusers.hooks
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from diffusers.hooks import HookRegistry
from diffusers.hooks.hooks import HookFunctionReference

import tapstudy
from tapstudy.bench.speed import third_party as peers
from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.places import StandIn, replaced
from tests.instrument.replay import Replay
from tests.instrument.tiny_models import make
from tests.pipelines.tiny import FACTORIES, sample

CONFIG = tapstudy.TAPConfig(interval=4, warmup_steps=2)
OFFLOADED = [("flux", "policy"), ("wan", "offload")]


def masks(handle):
    return {(context.transformer, context.context): context.mask for context in handle.summary().contexts}


def runs_of_the_last_block(pipe):
    """Counts real work in the last block."""
    blocks, _ = find_adapter(pipe.transformer).modules(pipe.transformer)
    layer = next(module for module in blocks[-1][0].modules() if isinstance(module, torch.nn.Linear))
    seen = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    return seen


# Pipelines that put their hooks on anew after every call


@pytest.mark.filterwarnings("ignore:__array__ implementation")
@pytest.mark.parametrize(("name", "first"), OFFLOADED)
def test_model_offload(name, first):
    pipe, call = FACTORIES[name]()
    plain = sample(pipe, call)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        expected, mask = sample(pipe, call), masks(handle)
    if first == "offload":
        pipe.enable_model_cpu_offload(device="cpu")
    handle = tapstudy.apply_tap(pipe, CONFIG)
    if first == "policy":
        pipe.enable_model_cpu_offload(device="cpu")
    ran = runs_of_the_last_block(pipe)
    for _ in range(3):
        ran.clear()
        assert torch.equal(sample(pipe, call), expected)
        assert masks(handle) == mask
        assert not handle.summary().notes
        assert len(ran) == sum(letters.count("F") for letters in mask.values())
    handle.remove()
    asked = []
    hook = pipe.transformer._hf_hook
    bring_in = hook.pre_forward
    hook.pre_forward = lambda module, *args, **kwargs: (asked.append(1), bring_in(module, *args, **kwargs))[1]
    assert torch.equal(sample(pipe, call), plain)
    assert asked, "offloading works on"
    pipe.remove_all_hooks()
    assert torch.equal(sample(pipe, call), plain)


# Other caches


@pytest.mark.filterwarnings("ignore")
def test_cache_dit_first():
    pytest.importorskip("cache_dit")
    pipe, call = FACTORIES["flux"]()
    plain = sample(pipe, call)
    with peers.dbcache(pipe, Fn_compute_blocks=1, residual_diff_threshold=10.0, max_warmup_steps=2):
        with pytest.raises(RuntimeError, match=r"replaced by cache_dit.*other caches"):
            tapstudy.apply_tap(pipe, CONFIG)
        assert not torch.equal(sample(pipe, call), plain)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        sample(pipe, call)
        assert masks(handle) == {("transformer", "cond"): "FF...F...F.."}
    assert torch.equal(sample(pipe, call), plain)


@pytest.mark.parametrize("taken_off_first", ["cache-dit", "policy"])
def test_cache_dit_second(taken_off_first):
    cache_dit = pytest.importorskip("cache_dit")
    pipe, call = FACTORIES["flux"]()
    plain = sample(pipe, call)
    handle = tapstudy.apply_tap(pipe, CONFIG)
    sample(pipe, call)
    cache_dit.enable_cache(
        pipe,
        cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, residual_diff_threshold=10.0, max_warmup_steps=2),
    )
    assert "cache_dit" in str(handle.summary())
    with pytest.warns(UserWarning, match=r"without its policy: its forward was replaced by cache_dit"):
        alone = sample(pipe, call)
    assert not torch.equal(alone, plain)
    assert masks(handle) == {}
    assert "replaced by cache_dit" in str(handle.summary())
    if taken_off_first == "policy":
        handle.remove()
        cache_dit.disable_cache(pipe)
    else:
        cache_dit.disable_cache(pipe)
        handle.remove()
    assert torch.equal(sample(pipe, call), plain)
    assert "replaced by cache_dit" in str(handle.summary())


def test_peers_are_refused_under_a_policy(tiny_pipe):
    with (
        tapstudy.apply_tap(tiny_pipe),
        pytest.raises(RuntimeError, match="already runs under a policy"),
        peers.dbcache(tiny_pipe),
    ):
        pass


# Forwards that somebody replaced by other means


def around(model):
    held = model.forward

    @functools.wraps(held)
    def forward(*args, **kwargs):
        return held(*args, **kwargs)

    model.forward = forward


def instead(model):
    own = type(model).forward

    def forward(self, *args, **kwargs):
        return own(self, *args, **kwargs)

    model.forward = types.MethodType(forward, model)


@pytest.mark.parametrize(("name", "replace"), [("DiT", around), ("Flux", instead)])
def test_a_replaced_forward(name, replace):
    """Refused if it was there before; else the policy stands aside and says so, until it is gone."""
    tiny = make(name)
    plain = tiny()
    replace(tiny.model)
    with pytest.raises(RuntimeError, match=rf"replaced by {__name__}\.{replace.__name__}"):
        tapstudy.apply_policy(tiny.model, Replay())
    del tiny.model.forward
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        before = vars(tiny.model)["forward"]
        tiny()
        replace(tiny.model)
        with pytest.warns(UserWarning, match="ran in full, without its policy: its forward was replaced"):
            assert torch.equal(tiny(), plain)
        assert torch.equal(tiny(), plain)
        assert not handle.summary().contexts
        assert replace.__name__ in str(handle.summary())
        tiny.model.forward = before
        handle.reset()
        assert torch.equal(tiny(), plain)
        tiny()
        assert masks(handle) == {(type(tiny.model).__name__, "default"): "F."}
        assert not handle.summary().notes
        replace(tiny.model)
    assert torch.equal(tiny(), plain)


def test_a_forward_of_the_class_replaced(monkeypatch):
    tiny = make("DiT")
    own = type(tiny.model).forward
    monkeypatch.setattr(type(tiny.model), "forward", lambda self, *args, **kwargs: own(self, *args, **kwargs))
    with pytest.raises(RuntimeError, match=r"replaced by .*test_a_forward_of_the_class_replaced"):
        tapstudy.apply_policy(tiny.model, Replay())


def test_a_forward_put_back_behind_our_back():
    """One call runs without the policy, which says so, and is in force at the next."""
    pipe, call = FACTORIES["wan"]()
    plain = sample(pipe, call)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        expected, mask = sample(pipe, call), masks(handle)
        del pipe.transformer.forward
        assert "put back the forward" in str(handle.summary())
        with pytest.warns(UserWarning, match="without its policy: somebody put back the forward"):
            sample(pipe, call)
        assert "put back the forward" in str(handle.summary())
        assert torch.equal(sample(pipe, call), expected)
        assert masks(handle) == mask
        assert not handle.summary().notes
    assert torch.equal(sample(pipe, call), plain)


def test_every_forward_put_back_behind_our_back():
    """Nothing is left to notice the call; the summary notices that there was one."""
    pipe, call = FACTORIES["stable_diffusion_3"]()
    plain = sample(pipe, call)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        sample(pipe, call)
        for module in pipe.transformer.modules():
            vars(module).pop("forward", None)
        assert torch.equal(sample(pipe, call), plain)
        assert not handle.summary().contexts
        assert "another run" in str(handle.summary())


def test_timesteps_set_anew_after_the_last_step(monkeypatch):
    """As WanAnimatePipeline does, for a segment that does not come. The next run without the policy is seen."""
    pipe, call = FACTORIES["stable_diffusion_3"]()
    free = type(pipe).maybe_free_model_hooks

    def through(self):
        self.scheduler.set_timesteps(self.num_timesteps)
        free(self)

    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        sample(pipe, call)
        expected = masks(handle)
        monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", through)
        sample(pipe, call)
        assert masks(handle) == expected
        assert not handle.summary().notes
        for module in pipe.transformer.modules():
            vars(module).pop("forward", None)
        sample(pipe, call)
        assert not handle.summary().contexts


def test_a_forward_compiled_in_place():
    tiny = make("SD3")
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        tiny.model.forward = torch.compile(tiny.model.forward, backend="eager")
        tiny(), tiny()
        assert masks(handle) == {("SD3Transformer2DModel", "default"): "F."}
        assert not handle.summary().notes


@pytest.mark.parametrize("path", ["transformer_blocks.0", "transformer_blocks.0.attn"])
def test_a_forward_of_a_part_replaced(path):
    """Whatever stands there, the policy stands on top of it."""
    tiny = make("SD3")
    plain = tiny()
    with tapstudy.apply_policy(tiny.model, Replay(full=(0, 4))) as handle:
        outputs = [tiny()]
        for replace in (instead, around, around):
            replace(tiny.model.get_submodule(path))
            outputs.append(tiny())
        outputs.append(tiny())
        assert masks(handle) == {("SD3Transformer2DModel", "default"): "F...F"}
    assert torch.equal(outputs[0], plain)
    assert torch.equal(outputs[4], plain)
    torch.testing.assert_close(torch.stack(outputs), torch.stack(5 * [plain]), rtol=1e-4, atol=1e-5)
    assert torch.equal(tiny(), plain)


def test_a_part_may_be_called_alone():
    tiny = make("DiT")
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        tiny()
        hidden = torch.randn(2, 16, 16)
        tiny.model.transformer_blocks[0](hidden, timestep=torch.ones(2), class_labels=torch.ones(2, dtype=torch.long))
        tiny()
        assert masks(handle) == {("DiTTransformer2DModel", "default"): "F."}


# Another transformer


def test_another_transformer_in_the_pipeline():
    pipe, call = FACTORIES["stable_diffusion_3"]()
    other, _ = FACTORIES["stable_diffusion_3"]()
    plain = sample(pipe, call)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        sample(pipe, call)
        mask = masks(handle)
        kept, pipe.transformer = pipe.transformer, other.transformer
        assert masks(handle) == mask
        assert "the pipeline has another one now (SD3Transformer2DModel)" in str(handle.summary())
        assert torch.equal(sample(pipe, call), plain)
        assert masks(handle) == {}
        assert "the pipeline has another one now (SD3Transformer2DModel)" in str(handle.summary())
        pipe.transformer = kept
        sample(pipe, call)
        assert masks(handle) == mask
        pipe.transformer = torch.compile(kept, backend="eager")  # the same in a wrapper
        assert not handle.summary().notes
        pipe.transformer = other.transformer
        sample(pipe, call)
    assert not handle.summary().contexts


def test_one_of_two_transformers_is_another():
    pipe, call = FACTORIES["wan22"]()
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        sample(pipe, call)
        assert {name for name, _ in masks(handle)} == {"transformer", "transformer_2"}
        pipe.transformer_2 = copy.deepcopy(pipe.transformer_2)
        sample(pipe, call)
        assert {name for name, _ in masks(handle)} == {"transformer"}
        assert [note.partition(":")[0] for note in handle.summary().notes] == ["transformer_2"]


# Copies


@pytest.mark.parametrize("name", ["Flux", "ZImage"])
def test_copies_are_free_of_the_policy(name):
    tiny = make(name)
    plain, signature = tiny(), inspect.signature(tiny.model.forward)
    with tapstudy.apply_policy(tiny.model, Replay(factor=1.5)) as handle:
        full, skip = tiny(), tiny()
        assert not torch.equal(full, skip)
        assert inspect.signature(tiny.model.forward) == signature
        stored = io.BytesIO()
        torch.save(tiny.model, stored)
        stored.seek(0)
        copies = [
            copy.deepcopy(tiny.model),
            pickle.loads(pickle.dumps(tiny.model)),
            torch.load(stored, weights_only=False),
        ]
        for model in copies:
            twin = copy.copy(tiny)
            object.__setattr__(twin, "model", model)
            assert torch.equal(twin(), plain)
            assert torch.equal(twin(), plain)
            held = [value for module in model.modules() for value in vars(module).values()]
            assert not any(isinstance(value, StandIn) for value in held)
            with tapstudy.apply_policy(model, Replay(factor=1.5)):
                assert torch.equal(twin(), full)
                assert torch.equal(twin(), skip)
            with torch.no_grad():
                next(iter(model.parameters())).add_(1)
        assert masks(handle) == {(type(tiny.model).__name__, "default"): "F."}
    assert torch.equal(tiny(), plain)


def test_copies_of_a_pipeline():
    pipe, call = FACTORIES["stable_diffusion_3"]()
    plain = sample(pipe, call)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        accelerated = sample(pipe, call)
        twin = copy.deepcopy(pipe)
        assert torch.equal(sample(twin, call), plain)
        with tapstudy.apply_tap(twin, CONFIG):
            assert torch.equal(sample(twin, call), accelerated)
        assert masks(handle) == {("transformer", "default"): "FF...F...F.."}
    assert torch.equal(sample(pipe, call), plain)


def test_copies_of_an_offloaded_model():
    tiny = make("SD3")
    plain = tiny()
    for first in ("hook", "policy"):
        with tapstudy.apply_policy(tiny.model, Replay(factor=1.5)) if first == "policy" else io.BytesIO():
            add_hook_to_module(tiny.model, ModelHook())
            with tapstudy.apply_policy(tiny.model, Replay(factor=1.5)) if first == "hook" else io.BytesIO():
                model = copy.deepcopy(tiny.model)
        twin = copy.copy(tiny)
        object.__setattr__(twin, "model", model)
        assert [torch.equal(twin(), plain) for _ in range(2)] == [True, True]


# What is relied on in accelerate, diffusers and torch


def test_names_relied_on():
    """Both wrap a forward in a partial, and keep what it calls where it is looked for."""
    layer = torch.nn.Linear(2, 2)
    own = layer.forward
    add_hook_to_module(layer, ModelHook())
    assert layer.forward.func.__module__ == "accelerate.hooks"
    assert layer._old_forward == own
    assert replaced(layer) is None
    layer = torch.nn.Linear(2, 2)
    registry = HookRegistry.check_if_exists_or_initialize(layer)
    registry.register_hook(diffusers.hooks.ModelHook(), "one")
    wrapper, (reference,) = layer.forward.func, registry._fn_refs
    assert wrapper.__module__ == HookFunctionReference.__module__
    assert reference in [cell.cell_contents for cell in wrapper.__closure__]
    assert reference.forward == torch.nn.Linear.forward.__get__(layer)
    assert reference.original_forward is None
    assert replaced(layer) is None


def test_a_stand_in_gives_nothing_of_itself_to_those_who_wrap_it():
    tiny = make("SD3")
    with tapstudy.apply_policy(tiny.model, Replay()):
        stand_in = vars(tiny.model)["forward"]
        assert not hasattr(stand_in, "__dict__")
        assert stand_in.__get__(tiny.model) is stand_in
        kept = vars(functools.update_wrapper(functools.partial(print), stand_in))
        assert set(kept) == {"__wrapped__", "__doc__", "__module__"}


@pytest.mark.parametrize("removed", [True, False])
def test_nothing_outlives_a_handle_or_a_model(removed):
    """Whatever is kept for the next policy: hooks of one that came back, and FLOPs that were counted."""

    def run(tiny):
        tapstudy.apply_tap(tiny.model, CONFIG).remove()
        handle = tapstudy.apply_tap(tiny.model, CONFIG)
        tiny()
        assert handle.summary().flops_ratio == 1
        if removed:
            handle.remove()
        return weakref.ref(next(iter(handle._instruments.values())).policy)

    models = [make("SD3")]
    policy, model = run(models[0]), weakref.ref(models[0].model)
    gc.collect()
    assert (policy() is None) is removed
    models.clear()
    gc.collect()
    assert policy() is None
    assert model() is None
