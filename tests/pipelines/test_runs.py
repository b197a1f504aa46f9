"""Pipelines that share a transformer, or the steps; steps, runs and contexts are told apart whoever drives them."""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

import tapstudy
from tapstudy.policies.base import RunInfo
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.magcache import MagCachePolicy
from tests.pipelines.tiny import FACTORIES, Call, sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

CONFIG = tapstudy.TAPConfig(interval=4, warmup_steps=2, cooldown_steps=1)


class Stop(KeyboardInterrupt):
    pass


class Spy(FixedPolicy):
    """Keeps what it is told about runs, for all its copies."""

    def __init__(self) -> None:
        super().__init__(0, config=CONFIG)
        self.told: list[RunInfo] = []

    def fresh(self) -> Any:
        return copy.deepcopy(self, {id(self.told): self.told})

    def begin(self, run: RunInfo) -> None:
        self.told.append(run)
        super().begin(run)


def masks(handle: tapstudy.Handle) -> dict[tuple[str, str], str]:
    return {(entry.transformer, entry.context): entry.mask for entry in handle.summary().contexts}


def another(pipe: Any) -> Any:
    """The same parts with a scheduler of its own."""
    view = type(pipe)(**{**pipe.components, "scheduler": copy.deepcopy(pipe.scheduler)})
    view.set_progress_bar_config(disable=True)
    return view


def alone(pipe: Any, call: Call) -> tuple[torch.Tensor, dict[tuple[str, str], str]]:
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        return sample(pipe, call), masks(handle)


# Shared transformers


@pytest.mark.parametrize("name", ["wan", "dit"])
def test_pipelines_with_copied_schedulers(name: str) -> None:
    first, call = FACTORIES[name]()
    second, longer = another(first), call | {"num_inference_steps": 15}
    wanted, wanted_longer = alone(first, call), alone(second, longer)
    with tapstudy.apply_tap(first, CONFIG) as handle:
        for pipe, arguments, (image, mask) in [
            (first, call, wanted),
            (second, longer, wanted_longer),
            (second, longer, wanted_longer),
            (first, call, wanted),
        ]:
            assert torch.equal(sample(pipe, arguments), image)
            assert masks(handle) == mask


@pytest.mark.parametrize(("name", "after"), [("stable_diffusion_3", 0), ("wan", 4), ("lumina2", 1), ("dit", 6)])
def test_a_pipeline_cut_short(name: str, after: int) -> None:
    first, call = FACTORIES[name]()
    second = another(first)
    wanted = alone(second, call)
    step = second.scheduler.step
    calls = iter(range(99))

    def stop(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == after:
            raise Stop
        return step(*args, **kwargs)

    with tapstudy.apply_tap(first, CONFIG) as handle:
        second.scheduler.step = stop
        with pytest.raises(Stop):
            sample(second, call)
        second.scheduler.step = step
        for pipe in (second, first):
            assert torch.equal(sample(pipe, call), wanted[0])
            assert masks(handle) == wanted[1]


def test_a_pipeline_run_within_a_step_of_another() -> None:
    outer, call = FACTORIES["lumina2"]()
    inner, shorter = another(outer), call | {"num_inference_steps": 7}
    wanted, wanted_inner = alone(outer, call), alone(inner, shorter)
    images = []

    def within(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step in (0, 5):
            images.append(sample(inner, shorter))
        return tensors

    with tapstudy.apply_tap(outer, CONFIG) as handle:
        assert torch.equal(sample(outer, call, callback_on_step_end=within), wanted[0])
        assert masks(handle) == wanted[1]
    assert all(torch.equal(image, wanted_inner[0]) for image in images)


def test_pipelines_in_threads() -> None:
    """Their steps alternate; prompts are encoded before, since tokenizers do not like threads."""
    pipe, call = FACTORIES["stable_diffusion_3"]()
    with torch.no_grad():
        embeds = pipe.encode_prompt(
            call["prompt"], call["prompt"], call["prompt"], negative_prompt=call["negative_prompt"],
            max_sequence_length=call["max_sequence_length"],
        )  # fmt: skip
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    call = {key: value for key, value in call.items() if "prompt" not in key} | dict(zip(names, embeds, strict=True))
    gate = threading.Barrier(2, timeout=60)
    found: dict[int, torch.Tensor] = {}
    errors: list[BaseException] = []

    def run(view: Any, seed: int, **changes: Any) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return view(**call, **changes, generator=generator, return_dict=False)[0]

    def wait(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        gate.wait()
        return tensors

    def work(seed: int) -> None:
        try:
            found[seed] = run(another(pipe), seed, callback_on_step_end=wait)
        except BaseException as error:
            errors.append(error)
            gate.abort()

    with tapstudy.apply_tap(pipe, CONFIG):
        wanted = {seed: run(pipe, seed) for seed in (0, 1)}
    with tapstudy.apply_tap(pipe, CONFIG):
        threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert all(torch.equal(found[seed], wanted[seed]) for seed in (0, 1))


# The steps of the run


def test_transformers_that_share_the_steps() -> None:
    """Each is told of the steps that it runs, and of their place among all."""
    pipe, call = FACTORIES["wan22"]()
    spy = Spy()
    with tapstudy.apply_policy(pipe, spy) as handle:
        sample(pipe, call)
        assert set(masks(handle).values()) == {"FF...F"}
    assert {(run.num_steps, run.first, run.total) for run in spy.told} == {(6, 0, 12), (6, 6, 12)}
    config = tapstudy.TAPConfig(interval=4, warmup_steps=6)
    with tapstudy.apply_tap(pipe, config), pytest.warns(UserWarning, match="6 sampling steps are too few"):
        sample(pipe, call)


def test_a_curve_is_read_at_the_steps_that_a_transformer_runs() -> None:
    pipe, call = FACTORIES["wan22"]()
    curve = [1.0] * 6 + [1.5, 1.0, 1.0, 1.5, 1.0, 1.0]
    with tapstudy.apply_policy(pipe, MagCachePolicy(curve, max_skips=9, retention=0.0)) as handle:
        sample(pipe, call)
        assert {name: mask for (name, _), mask in masks(handle).items()} == {
            "transformer": "F.....",
            "transformer_2": "F..F..",
        }


@pytest.mark.parametrize("transformer", ["transformer", "transformer_2"])
def test_recorded_timesteps_are_those_of_the_calls(transformer: str, tmp_path: Any) -> None:
    pipe, call = FACTORIES["wan22"]()
    told: list[float] = []
    watch = getattr(pipe, transformer).register_forward_pre_hook(
        lambda module, args, kwargs: told.append(float(kwargs["timestep"].max())), with_kwargs=True
    )
    arguments = {"output_type": "latent", "seed": 0}
    dataset = tapstudy.record(
        pipe, [call | arguments], tmp_path / "recording.zarr", fields=("true_error",), config=CONFIG,
        transformer=transformer, progress=False,
    )  # fmt: skip
    watch.remove()
    assert dataset.sizes["step"] == 6
    np.testing.assert_allclose(dataset["timestep"], told[::2])
    np.testing.assert_allclose(dataset["sigma"], np.array(told[::2]) / 1000, atol=2e-3)
    scored = np.isfinite(dataset["true_error"]).any(["token", "predictor"])
    assert scored.isel(sample=0, context=0).values.tolist() == [False, False, True, True, True, False]


def video_to_video(name: str, monkeypatch: Any) -> tuple[Any, Call]:
    import diffusers.pipelines.wan.pipeline_wan_video2video as module

    monkeypatch.setattr(module, "is_ftfy_available", lambda: False, raising=False)
    monkeypatch.setattr(module, "ftfy", type("Ftfy", (), {"fix_text": staticmethod(lambda text: text)}), raising=False)
    pipe, call = FACTORIES[name]()
    kind = {"wan": diffusers.WanVideoToVideoPipeline, "cogvideox": diffusers.CogVideoXVideoToVideoPipeline}[name]
    parts = inspect.signature(kind.__init__).parameters
    second = kind(**{key: part for key, part in pipe.components.items() if key in parts})
    second.set_progress_bar_config(disable=True)
    known = inspect.signature(kind.__call__).parameters
    video = list(torch.linspace(0, 1, 5 * 32 * 64 * 3).view(5, 32, 64, 3).numpy())
    kept = {key: value for key, value in call.items() if key in known and key != "num_frames"}
    return second, kept | {"video": video, "strength": 0.5}


@pytest.mark.parametrize("name", ["wan", "cogvideox"])
def test_video_to_video_whose_scheduler_is_not_told_where_it_begins(name: str, monkeypatch: Any) -> None:
    pipe, call = video_to_video(name, monkeypatch)
    spy = Spy()
    with tapstudy.apply_policy(pipe, spy) as handle:
        sample(pipe, call)
        assert set(masks(handle).values()) == {"FF...F"}
    assert {(run.num_steps, run.first, run.total) for run in spy.told} == {(6, 6, 12)}


def test_a_solver_that_evaluates_twice_is_one_context() -> None:
    pipe, call = FACTORIES["sana"]()
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        sample(pipe, call | {"num_inference_steps": 7})
        assert masks(handle) == {("transformer", "default"): "FF...F...F..F"}


def test_a_solver_that_evaluates_twice_with_conditioning_rebuilt_every_time() -> None:
    pipe = tapstudy.load("mnist-dit")
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.FlowMatchHeunDiscreteScheduler(shift=1.0)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        for guidance in (2.0, 1.0):
            pipe([3], num_inference_steps=5, guidance_scale=guidance, output_type="latent")
            assert masks(handle) == {("transformer", "default"): "FF...F..F"}
