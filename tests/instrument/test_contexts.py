"""Which calls share a history: guidance branches, however the caller tells them apart, and trajectories."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import tapstudy
from tapstudy.instrument.adapters import ADAPTERS
from tests.instrument.replay import Replay, relative_error
from tests.instrument.tiny_models import flux, make, qwen, z_image

T = 8


def other_condition(tiny, factor):
    """The same call with other conditioning, in the form the class wants it."""
    name = ADAPTERS[type(tiny.model).__name__].key
    value = tiny.inputs[name]
    if isinstance(value, list):
        return {name: [factor * item for item in value]}
    return {name: value.flip(0) if not value.is_floating_point() else factor * value}


def masks(handle):
    return {context.context: context.mask for context in handle.summary().contexts}


@pytest.mark.parametrize("name", ["DiT", "SD3", "ZImage"])  # labels, tensors, lists
def test_branches_without_names_are_told_apart_by_their_conditioning(name):
    """Two alternating calls give what each gives alone: no history is mixed."""
    tiny = make(name)
    branches = [other_condition(tiny, 1.0), other_condition(tiny, -1.0)]
    key = next(iter(branches[0]))
    config = tapstudy.TAPConfig(interval=3, warmup_steps=2)
    alone = []
    for branch in branches:
        with tapstudy.apply_tap(tiny.model, config):
            alone.append([tiny(**{**tiny.at(step, T), key: branch[key]}) for step in range(T)])
    with tapstudy.apply_tap(tiny.model, config) as handle:
        for step in range(T):
            for branch, expected in zip(branches, alone, strict=True):
                assert torch.equal(tiny(**{**tiny.at(step, T), key: branch[key]}), expected[step])
        assert masks(handle) == {"default": "FF..F..F", "context-1": "FF..F..F"}


def test_conditioning_rebuilt_at_every_step_is_compared_by_value():
    tiny = make("Lumina2")
    text = tiny.inputs["encoder_hidden_states"]
    with tapstudy.apply_policy(tiny.model, Replay(full=(0, 3))) as handle:
        for step in range(6):
            tiny(**{**tiny.at(step, 6), "encoder_hidden_states": text.clone()})
            if step < 3:  # the unconditional branch ends early, as with truncated guidance
                tiny(**{**tiny.at(step, 6), "encoder_hidden_states": -text})
        assert masks(handle) == {"default": "F..F..", "context-1": "F.."}


def test_lists_of_conditioning_rebuilt_around_the_same_tensors():
    tiny = make("ZImage")
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        for step in range(3):
            tiny(**{**tiny.at(step, 3), "cap_feats": list(tiny.inputs["cap_feats"])})
        assert masks(handle) == {"default": "F.."}


def test_equal_conditioning_in_two_branches_of_one_step():
    tiny = make("SD3")
    text = tiny.inputs["encoder_hidden_states"]
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        for step in range(4):
            for _ in range(2):
                tiny(**{**tiny.at(step, 4), "encoder_hidden_states": text.clone()})
        assert masks(handle) == {"default": "F...", "context-1": "F..."}


def test_names_from_cache_context():
    """Names win over conditioning, and three branches are as good as two."""
    tiny = make("Flux")
    with tapstudy.apply_policy(tiny.model, Replay(full=(0, 2))) as handle:
        for step in range(4):
            for branch in ("cond", "uncond", "third"):
                with tiny.model.cache_context(branch):
                    tiny(**tiny.at(step, 4))
        tiny(**tiny.at(3, 4))  # outside there is no name
        assert masks(handle) == {"cond": "F.F.", "uncond": "F.F.", "third": "F.F.", "default": "F"}


def test_a_context_entered_before_attaching_does_no_harm():
    tiny = make("Wan")
    with tiny.model.cache_context("cond"):
        tiny()
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        for _ in range(2):
            with tiny.model.cache_context("cond"):
                tiny()
        assert masks(handle) == {"cond": "F."}
    with tiny.model.cache_context("cond"):
        tiny()


def test_explicit_names_win_and_nest():
    """Two calls of one name in a step are two contexts, as two calls with one conditioning are."""
    tiny = make("DiT")
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        for step in range(3):
            with handle.context("outer"):
                tiny(**tiny.at(step, 3))
                with handle.context("inner"):
                    tiny(**tiny.at(step, 3))
                tiny(**tiny.at(step, 3))
        assert masks(handle) == {"outer": "F..", "inner": "F..", "outer-1": "F.."}


def test_shape_change_empties_the_history():
    tiny = make("SD3")
    half = {
        name: value[:1] for name, value in tiny.inputs.items() if isinstance(value, torch.Tensor)
    }  # guidance ends: the batch halves
    with tapstudy.apply_policy(tiny.model, Replay()) as handle, handle.context("all"):
        tiny(), tiny()
        plain_half = tiny(**half)
        skipped_half = tiny(**half)
        (summary,) = handle.summary().contexts
        assert summary.mask == "F.F."
        assert summary.fail_opens == {"input shape changed": 1}
    assert torch.equal(plain_half, tiny(**half))
    assert relative_error(skipped_half, plain_half) < 1e-5


def test_skip_layer_guidance_runs_in_full_in_a_context_of_its_own():
    tiny = make("SD3")
    positive = [{name: value[:1] for name, value in tiny.at(step, 4).items()} for step in range(4)]
    plain = [tiny(**inputs, skip_layers=[0]) for inputs in positive]
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        for step in range(4):
            tiny(**tiny.at(step, 4))
            if step in (1, 2):
                assert torch.equal(tiny(**positive[step], skip_layers=[0]), plain[step])
        assert masks(handle) == {"default": "F...", "skip_layers": "FF"}
        by_name = {context.context: context.fail_opens for context in handle.summary().contexts}
        assert by_name == {"default": {}, "skip_layers": {"skip_layers": 1}}


def test_passes_aside_ask_a_policy_that_has_begun():
    class Begun(Replay):
        def begin(self, run):
            super().begin(run)
            self.every = 3

        def wants_full(self, step):
            return step % self.every == 0

    tiny = make("SD3")
    with tapstudy.apply_policy(tiny.model, Begun()) as handle:
        for step in range(4):
            tiny(**tiny.at(step, 4), skip_layers=[0])
            tiny(**tiny.at(step, 4))
    assert masks(handle) == {"skip_layers": "FFFF", "default": "F..F"}
    assert handle.summary().contexts[0].fail_opens == {"skip_layers": 2}


def test_flux2_call_that_fills_the_reference_cache_stays_out_of_the_history():
    flux2 = pytest.importorskip("diffusers.models.transformers.transformer_flux2")
    if not hasattr(flux2, "Flux2KVAttnProcessor"):
        pytest.skip("this diffusers has no reference cache")
    tiny = make("Flux2")
    for block in tiny.model.transformer_blocks:
        block.attn.set_processor(flux2.Flux2KVAttnProcessor())
    for block in tiny.model.single_transformer_blocks:
        block.attn.set_processor(flux2.Flux2KVParallelSelfAttnProcessor())
    references = torch.randn(2, 6, 8)
    extract = {
        "hidden_states": torch.cat([references, tiny.inputs["hidden_states"]], dim=1),
        "img_ids": torch.cat([torch.full((6, 4), 10.0), tiny.inputs["img_ids"]]),
        "kv_cache_mode": "extract",
        "num_ref_tokens": 6,
    }
    plain = tiny(**extract)
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        assert torch.equal(tiny(**extract), plain)
        with torch.no_grad():
            cache = tiny.model(**{**tiny.inputs, **extract}, return_dict=False)[1]
        cached = {"kv_cache": cache, "kv_cache_mode": "cached"}
        full, skip = tiny(**cached), tiny(**cached)
        assert relative_error(skip, full) < 1e-5
        assert masks(handle) == {"kv_cache_mode='extract'": "FF", "default": "F."}


def test_z_image_samples_of_different_sizes_run_in_full():
    tiny = make("ZImage")
    x = [torch.randn(4, 1, 8, 12), torch.randn(4, 1, 8, 8)]

    def call():
        with torch.no_grad():
            return tiny.model(**{**tiny.inputs, "x": list(x)}).sample

    plain = call()
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        for _ in range(2):
            assert all(torch.equal(a, b) for a, b in zip(call(), plain, strict=True))
        assert handle.summary().contexts[0].fail_opens == {"samples of different sizes": 1}
        with pytest.warns(UserWarning, match="different sizes"):
            handle.reset()


def test_a_probe_that_is_not_reached_runs_in_full():
    """An attention replaced behind the instrument's back: nothing to skip by, but nothing breaks."""
    tiny = make("SD3")
    plain = tiny()
    block = tiny.model.transformer_blocks[0]
    hooked, other = block.attn, make("SD3").model.transformer_blocks[0].attn
    with tapstudy.apply_policy(tiny.model, Replay(full=(0, 3))) as handle:
        tiny(), tiny()
        block.attn = other
        with pytest.warns(UserWarning, match="probe not reached"):
            assert torch.equal(tiny(), plain)  # wanted to skip
        assert torch.equal(tiny(), plain)  # was to be full, but showed no probe
        block.attn = hooked
        assert relative_error(tiny(), plain) < 1e-5
        assert masks(handle) == {"default": "F.FFF"}  # it had made room for a full step that taught nothing
        assert handle.summary().contexts[0].fail_opens == {"probe not reached": 2}


def test_an_exception_leaves_no_half_done_step():
    tiny = make("Wan")
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        tiny()
        with pytest.raises(RuntimeError):
            tiny(encoder_hidden_states=torch.zeros(2, 5, 99))
        assert handle.summary().contexts == []
        tiny(), tiny()
        assert masks(handle) == {"default": "F."}


# References and layers: only the image being made has tokens


@pytest.mark.parametrize(("build", "site"), [(flux, "hidden"), (qwen, "latent")])
def test_reference_images_are_not_part_of_the_grid(build, site):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = build(references=1)
    tiny.model.eval()
    plain = tiny()
    events = []
    with tapstudy.apply_policy(tiny.model, Replay(site=site)) as handle:
        handle.listen(events.append)
        assert torch.equal(tiny(), plain)
        skip = tiny()
    assert events[1].kind == "skip"
    assert events[1].probe.shape[1] == 24
    assert events[1].grid == (1, 4, 6)
    assert relative_error(skip[:, :24], plain[:, :24]) < 1e-5
    assert tapstudy.check(tiny.model, tiny.inputs).ok


def test_grid_of_layered_images():
    grid = ADAPTERS["QwenImageTransformer2DModel"].grid
    layered = SimpleNamespace(config={"use_layer3d_rope": True})
    assert grid(layered, {"img_shapes": [[(1, 4, 6)] * 3 + [(1, 8, 8)]]}) == (3, 4, 6)
    plain = SimpleNamespace(config={})
    assert grid(plain, {"img_shapes": [[(1, 4, 6), (1, 8, 8)]]}) == (1, 4, 6)
    assert grid(plain, {"img_shapes": [(1, 4, 6)]}) == (1, 4, 6)


def test_ltx_with_coordinates_only_has_one_row_of_tokens():
    tiny = make("LTX")
    coordinates = torch.rand(2, 3, 18) * 4
    events = []
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        handle.listen(events.append)
        for _ in range(2):
            tiny(num_frames=None, height=None, width=None, video_coords=coordinates)
    assert [(event.kind, event.grid) for event in events] == [("full", (1, 1, 18)), ("skip", (1, 1, 18))]


def test_z_image_omni_finds_the_last_image():
    """[captions, references, image], each padded to 32: the image starts behind two captions and one reference."""
    start = ADAPTERS["ZImageTransformer2DModel"].start
    x = [[torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 12)], [None, torch.zeros(4, 1, 8, 12)]]
    captions = [[torch.zeros(5, 12), torch.zeros(40, 12)], [torch.zeros(32, 12), torch.zeros(1, 12)]]
    assert start(0, {"x": x, "cap_feats": captions}) == [32 + 64 + 32, 32 + 32 + 32]
    assert ADAPTERS["ZImageTransformer2DModel"].grid(None, {"x": x}) == (1, 4, 6)


def test_z_image_omni_end_to_end():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tiny = z_image()
        x = [[torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 12)] for _ in range(2)]
        captions = [[torch.randn(5, 12), torch.randn(4, 12)], [torch.randn(40, 12), torch.randn(3, 12)]]
    tiny.model.eval()
    inputs = {
        "x": x, "t": tiny.inputs["t"], "cap_feats": captions, "siglip_feats": [None, None],
        "image_noise_mask": [[0, 1], [0, 1]],
    }  # fmt: skip
    report = tapstudy.check(tiny.model, inputs)
    assert report.ok, report
    assert report.sites[0].grid == (1, 4, 6)


# Pipelines with two transformers


def test_both_transformers_of_wan_2_2_run_under_the_policy():
    high, low = make("Wan"), make("Wan", seed=1)
    pipe = SimpleNamespace(
        components={"transformer": high.model, "transformer_2": low.model, "vae": torch.nn.Linear(1, 1)}
    )
    with tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=3, warmup_steps=1)) as handle:
        for step in range(10):
            part = high if step < 6 else low
            with part.model.cache_context("cond"):
                part(**part.at(step, 10))
        found = {summary.transformer: summary.mask for summary in handle.summary().contexts}
    assert found == {"transformer": "F..F..", "transformer_2": "F..F"}
    for model in (high.model, low.model):
        assert not {"forward", "cache_context", "_reset_stateful_cache"} & set(vars(model))
