"""What is refused, and what is warned of (once)."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers import FasterCacheConfig, FirstBlockCacheConfig, PyramidAttentionBroadcastConfig
from diffusers.hooks import apply_pyramid_attention_broadcast

import tapstudy
from tapstudy.instrument.caution import draws_noise, too_short
from tapstudy.policies.base import RunInfo
from tests.instrument.replay import Replay
from tests.instrument.tiny_models import make
from tests.table import each_row


def pipeline(tiny, scheduler, steps):
    scheduler.set_timesteps(steps)
    return SimpleNamespace(components={"transformer": tiny.model}, scheduler=scheduler)


def run(tiny, pipe, steps):
    for step in range(steps):
        tiny(**{**tiny.at(step, steps), tiny.timestep: pipe.scheduler.timesteps[step].expand(2).float()})


def flow():
    return diffusers.FlowMatchEulerDiscreteScheduler()


# Other caches


@each_row(
    "config",
    [
        FirstBlockCacheConfig(),
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500),
        FasterCacheConfig(current_timestep_callback=lambda: 500),
    ],
)
def test_refuses_to_stack_on_a_diffusers_cache(config):
    tiny = make("Wan")
    tiny.model.enable_cache(config)
    with pytest.raises(
        RuntimeError, match=r"a diffusers cache is enabled on this WanTransformer3DModel.*disable_cache"
    ):
        tapstudy.apply_tap(tiny.model)
    tiny.model.disable_cache()
    tapstudy.apply_tap(tiny.model).remove()


def test_refuses_a_cache_applied_without_the_mixin():
    tiny = make("SD3")  # has no enable_cache
    apply_pyramid_attention_broadcast(
        tiny.model,
        PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500),
    )
    with pytest.raises(RuntimeError, match="a diffusers cache is enabled"):
        tapstudy.apply_tap(tiny.model)


def test_refuses_a_cache_enabled_later():
    tiny = make("Wan")
    with tapstudy.apply_policy(tiny.model, Replay()) as handle:
        tiny()
        tiny.model.enable_cache(FirstBlockCacheConfig())
        handle.reset()
        with tiny.model.cache_context("cond"), pytest.raises(RuntimeError, match="a diffusers cache is enabled"):
            tiny()
    tiny.model.disable_cache()


def test_refuses_a_second_policy():
    tiny = make("Wan")
    with tapstudy.apply_tap(tiny.model), pytest.raises(RuntimeError, match="already runs under a policy"):
        tapstudy.apply_tap(tiny.model)


# Warnings


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # some old schedulers under numpy 2
def test_knows_schedulers_that_draw_noise():
    for name, options, noisy in (
        ("DDPMScheduler", {}, True),
        ("EulerAncestralDiscreteScheduler", {}, True),
        ("LCMScheduler", {}, True),
        ("CogVideoXDPMScheduler", {}, True),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, True),
        ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}, True),
        ("FlowMatchEulerDiscreteScheduler", {}, False),
        ("DDIMScheduler", {}, False),
        ("EulerDiscreteScheduler", {}, False),
        ("DPMSolverMultistepScheduler", {}, False),
        ("UniPCMultistepScheduler", {}, False),
        ("FlowMatchHeunDiscreteScheduler", {}, False),
    ):
        assert draws_noise(getattr(diffusers, name)(**options)) == noisy, (name, options)


def test_warns_once_of_a_stochastic_scheduler():
    tiny = make("DiT")
    pipe = pipeline(tiny, diffusers.DDPMScheduler(), 12)
    with tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=2)):
        with pytest.warns(UserWarning, match="DDPMScheduler adds fresh noise"):
            run(tiny, pipe, 12)
        pipe.scheduler.set_timesteps(12)
        run(tiny, pipe, 12)  # a second warning would be an error here


def test_warns_of_too_few_steps():
    tiny = make("SD3")
    pipe = pipeline(tiny, flow(), 3)
    with (
        tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=2, warmup_steps=3)),
        pytest.warns(UserWarning, match="3 sampling steps are too few"),
    ):
        run(tiny, pipe, 3)


def test_too_short_means_no_skip_here_but_some_in_a_longer_run():
    for config, steps, short in (
        ({"interval": 2, "warmup_steps": 3}, 3, True),
        ({"interval": 2, "warmup_steps": 3}, 4, False),
        ({"interval": 4, "warmup_steps": 3, "cooldown_steps": 5}, 8, True),
        ({"interval": 4, "warmup_steps": 3, "cooldown_steps": 5}, 9, False),
        ({"interval": 1}, 3, False),  # asked for
        ({"full_steps": (0, 1, 2)}, 3, True),
    ):
        policy = tapstudy.policies.tap.TAPPolicy(tapstudy.TAPConfig(**config))
        assert too_short(policy, RunInfo(steps)) == short, (config, steps)


def test_image_to_image_counts_the_remaining_steps():
    tiny = make("SD3")
    pipe = pipeline(tiny, flow(), 10)
    pipe.scheduler.set_begin_index(7)  # strength 0.3
    with (
        tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=2, warmup_steps=3)),
        pytest.warns(UserWarning, match="3 sampling steps are too few"),
    ):
        tiny(timestep=pipe.scheduler.timesteps[7].expand(2))


def test_warns_when_no_wanted_skip_happened():
    """Conditioning that is never the same twice: every call looks like a new branch."""
    tiny = make("SD3")
    policy = Replay(full=())  # wants to skip from the start
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        handle = tapstudy.apply_policy(tiny.model, policy)
        for step in range(4):
            tiny(**{**tiny.at(step, 4), "encoder_hidden_states": torch.randn(2, 5, 12)})
    assert handle.summary().contexts[0].fail_opens == {"no history yet": 1}
    with pytest.warns(
        UserWarning, match=r"no step of SD3Transformer2DModel was skipped.*no history yet.*handle.context"
    ):
        handle.remove()


def test_says_nothing_when_all_is_well():
    tiny = make("SD3")
    pipe = pipeline(tiny, flow(), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=3)) as handle:
            run(tiny, pipe, 8)
            pipe.scheduler.set_timesteps(8)
            run(tiny, pipe, 8)
            assert [summary.mask for summary in handle.summary().contexts] == ["FFF..F.."]


class Begun(Replay):
    """Must begin before it can answer."""

    last = None

    def begin(self, run):
        super().begin(run)
        self.last = run.num_steps

    def wants_full(self, step):
        return step < self.last - 1


def test_a_policy_that_has_to_begin_before_it_can_answer_is_not_called_too_short():
    assert not too_short(Begun(), RunInfo(5))


def test_a_scheduler_may_hold_its_settings_in_anything():
    tiny, settings = make("SD3"), SimpleNamespace(num_train_timesteps=1000)

    class Own:
        config, step_index, num_inference_steps, timesteps = settings, None, None, None

        def set_timesteps(self, steps):
            self.timesteps, self.num_inference_steps, self.step_index = torch.linspace(999, 1, steps), steps, 0

        def step(self, output, timestep, latent):
            self.step_index += 1
            return latent

    own = Own()
    assert not draws_noise(own)
    own.set_timesteps(5)
    with tapstudy.tap(tiny.model, interval=3, warmup_steps=1) as handle:
        for timestep in own.timesteps:
            tiny(**{**tiny.inputs, tiny.timestep: timestep.expand(2)})
            own.step(None, timestep, None)
    assert handle.summary().mask == "F..F."
