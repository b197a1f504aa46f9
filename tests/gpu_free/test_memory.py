"""Live storages on a fake GPU: what a policy holds, and for how long."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler

import tapstudy
from tapstudy import TAPConfig
from tapstudy.bench.speed import subjects
from tests.gpu_free.models import real
from tests.instrument.tiny_models import make


@pytest.mark.parametrize("name", ["FluxTransformer2DModel", "WanTransformer3DModel"])
def test_the_peak_is_that_of_the_model_and_the_history(gpus, name):
    """A full pass holds its start and its probe too, but they take less than the oldest anchor, which makes room."""
    with gpus() as trace:
        loop = real(trace, name)
        weights = trace.live
        trace.phase()
        loop(1)
        plain = trace.phase().peak - weights
        with tapstudy.apply_tap(loop, TAPConfig(interval=3)) as handle:
            trace.watch(handle)
            loop(7)
            (context,) = handle.summary().contexts
            assert context.mask == "FFF..F."
            history = context.cache_bytes
            residual = history / 3 * 2 / 3
            peak = max(tally.peak for tally in trace.of("full")) - weights
            assert peak <= plain + history - 0.3 * residual
            skip = max(tally.peak for tally in trace.of("skip")) - weights
            assert skip <= plain + history - 0.3 * residual
            assert trace.live - weights <= history + 0.2 * residual
        assert trace.live - weights <= 0.2 * residual


class TwoTransformers:
    """Hold a loop as that of Wan 2.2: the first transformer makes the noisier half of the steps."""

    config = {"boundary_ratio": 0.5}  # noqa: RUF012

    def __init__(self, transformer, transformer_2, inputs):
        self.transformer, self.transformer_2, self.inputs = transformer, transformer_2, inputs
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        self.components = {"transformer": transformer, "transformer_2": transformer_2}

    def __call__(self, steps, after_step):
        self.scheduler.set_timesteps(steps)
        self.scheduler.set_begin_index(0)
        latent = self.inputs["hidden_states"]
        for timestep in self.scheduler.timesteps:
            model = self.transformer if timestep >= 500 else self.transformer_2
            given = {"hidden_states": latent, "timestep": timestep.expand(2).to("cuda", non_blocking=True)}
            output = model(**self.inputs | given, return_dict=False)[0]
            latent = self.scheduler.step(output, timestep, latent, return_dict=False)[0]
            after_step()


def test_the_first_of_two_transformers_frees_its_history_when_its_steps_are_over(gpus):
    first, second = make("Wan"), make("Wan")
    with gpus() as trace:
        pipe = TwoTransformers(trace.on(first.model), trace.on(second.model), trace.on(first.inputs))
        held = []
        with tapstudy.apply_tap(pipe, TAPConfig(interval=4)) as handle:
            instruments = [*handle._instruments.values()]
            pipe(
                10,
                lambda: held.append([sum(run.policy.cache_bytes for run in one.runs.values()) for one in instruments]),
            )
            summary = handle.summary()
        count = len(summary.contexts[0].mask)
        assert [context.mask for context in summary.contexts] == ["FFF..", "FFF.."]
        history = summary.contexts[0].cache_bytes
        grows = [history // 3, 2 * history // 3, history, history, 0]
        assert [one for one, _ in held] == [*grows, *[0] * count]
        assert [other for _, other in held] == [*[0] * count, *grows[:4], history]


def test_presets_are_built_in_their_dtype(gpus, monkeypatch):
    preset = subjects.PRESETS["qwen-image"]
    few = {**preset.size.config, "num_layers": 2}
    monkeypatch.setitem(
        subjects.PRESETS, "qwen-image", subjects.replace(preset, size=subjects.replace(preset.size, config=few))
    )
    with gpus() as trace:
        trace.phase()
        subject = subjects.make_subject("qwen-image", device=torch.device("cuda"))
        assert {parameter.dtype for parameter in subject.model.parameters()} == {torch.bfloat16}
        assert trace.tally.peak <= 1.05 * 2 * subject.parameters


def test_the_clock_runs_on_the_stream_of_the_model(gpus):
    tiny = make("SD3")
    with gpus() as trace:
        loop = subjects.EulerLoop(trace.on(tiny.model, "cuda:1"), trace.on(tiny.inputs, "cuda:1"), time_scale=1000)
        with tapstudy.apply_tap(loop, TAPConfig(interval=4)):
            loop(5)
        assert trace.streams == 10 * [torch.device("cuda:1")]
