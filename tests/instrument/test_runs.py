"""Runs and the contexts of a step, in loops of one's own: each gives what it gives alone, whatever came before it."""

from __future__ import annotations

import copy
import threading
from types import SimpleNamespace

import diffusers
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import tapstudy
from tapstudy.instrument.adapters import ADAPTERS
from tapstudy.instrument.driver import Driver, StepWatch, Value
from tests.instrument.tiny_models import make

CONFIG = tapstudy.TAPConfig(interval=3, warmup_steps=2)
T = 7


def window(latent, number):
    """The latent of another window or tile."""
    if isinstance(latent, list):
        return [window(sample, number) for sample in latent]
    return 0.6 * latent + torch.randn(latent.shape, generator=torch.Generator().manual_seed(number))


def inputs(tiny, step, steps, number):
    arguments = tiny.at(step, steps)
    key = ADAPTERS[type(tiny.model).__name__].key
    return {**arguments, key: tiny.inputs[key], tiny.latent: window(arguments[tiny.latent], number)}


def loop(tiny, numbers, *, steps=T, stop=None):
    """Outputs by window; `numbers` are the windows of a step, in the order of their calls."""
    found = {number: [] for number in numbers}
    for step in range(steps if stop is None else stop):
        for number in numbers:
            found[number].append(tiny(**inputs(tiny, step, steps, number)))
    return found


def alone(tiny, number, steps=T):
    with tapstudy.apply_tap(tiny.model, CONFIG):
        return loop(tiny, [number], steps=steps)[number]


def assert_same(found, expected):
    assert len(found) == len(expected)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def masks(handle):
    return {context.context: context.mask for context in handle.summary().contexts}


def reasons(handle):
    return {context.context: context.fail_opens for context in handle.summary().contexts if context.fail_opens}


# Several calls of a step with the same conditioning


@pytest.mark.parametrize("name", ["DiT", "ZImage"])
def test_windows_of_a_step_are_contexts(name):
    tiny = make(name)
    expected = {number: alone(tiny, number) for number in (0, 1, 2)}
    with tapstudy.apply_tap(tiny.model, CONFIG) as handle:
        found = loop(tiny, [0, 1, 2])
        assert masks(handle) == {"default": "FF..F..", "context-1": "FF..F..", "context-2": "FF..F.."}
    for number in (0, 1, 2):
        assert_same(found[number], expected[number])


def test_windows_in_one_buffer_written_in_place():
    tiny = make("SD3")
    expected = {number: alone(tiny, number) for number in (0, 1)}
    buffer = torch.zeros(2, *tiny.inputs["hidden_states"].shape)
    with tapstudy.apply_tap(tiny.model, CONFIG):
        for step in range(T):
            for number in (0, 1):
                arguments = inputs(tiny, step, T, number)
                buffer[number].copy_(arguments["hidden_states"])
                found = tiny(**{**arguments, "hidden_states": buffer[number]})
                assert torch.equal(found, expected[number][step])


def test_windows_in_changing_order_follow_their_latents():
    tiny = make("Wan")
    expected = {number: alone(tiny, number) for number in (0, 1)}
    with tapstudy.apply_tap(tiny.model, CONFIG):
        for step in range(T):
            for number in ((0, 1), (1, 0))[step % 2]:
                assert torch.equal(tiny(**inputs(tiny, step, T, number)), expected[number][step])


def test_windows_under_one_given_name():
    tiny = make("Wan")
    expected = {number: alone(tiny, number) for number in (0, 1)}
    with tapstudy.apply_tap(tiny.model, CONFIG) as handle:
        for step in range(T):
            for number in (0, 1):
                with tiny.model.cache_context("cond"):
                    assert torch.equal(tiny(**inputs(tiny, step, T, number)), expected[number][step])
        assert masks(handle) == {"cond": "FF..F..", "cond-1": "FF..F.."}


def test_perturbed_guidance_calls_with_the_very_same_arguments():
    """A scheduler tells the steps: the second call of a step is the perturbed one."""
    tiny = make("SD3")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = SimpleNamespace(components={"transformer": tiny.model}, scheduler=scheduler)

    def run(perturbed):
        scheduler.set_timesteps(T)
        outputs = []
        x = tiny.inputs["hidden_states"]
        for t in scheduler.timesteps:
            arguments = {**tiny.inputs, "hidden_states": x, "timestep": t.expand(len(x))}
            velocity = tiny(**arguments)
            if perturbed:
                undo = tiny.model.transformer_blocks[1].register_forward_hook(
                    lambda module, args, kwargs, output: (kwargs["encoder_hidden_states"], kwargs["hidden_states"]),
                    with_kwargs=True,
                )
                tiny(**arguments)
                undo.remove()
            outputs.append(velocity)
            x = scheduler.step(velocity, t, x, return_dict=False)[0]
        return outputs

    with tapstudy.apply_tap(pipe, CONFIG):
        expected = run(perturbed=False)
    with tapstudy.apply_tap(pipe, CONFIG) as handle:
        assert_same(run(perturbed=True), expected)
        assert masks(handle) == {"default": "FF..F..", "context-1": "FF..F.."}


@pytest.mark.parametrize("warmup_steps", [1, 2])
def test_perturbed_guidance_of_a_bare_transformer_is_said_when_it_shows(warmup_steps):
    """Nothing tells the very same call from the next step until the timestep moves."""
    tiny = make("SD3")
    policy = tapstudy.TAPConfig(interval=3, warmup_steps=warmup_steps)
    with tapstudy.apply_tap(tiny.model, policy) as handle:
        for step in range(T):
            arguments = tiny.at(step, T)
            if step == 1:
                with pytest.warns(UserWarning, match=r"first timestep.*handle.context"):
                    tiny(**arguments)
            else:
                tiny(**arguments)
            tiny(**arguments)
        mask = "F..F.." if warmup_steps == 1 else "FF..F."
        assert masks(handle) == {"default": mask, "context-1": mask}


def test_calls_that_change_in_number_do_not_mix():
    """A window comes in and goes: what the latents cannot tell starts anew, and that is said."""
    tiny = make("SD3")
    latents = [torch.randn(T, *tiny.inputs["hidden_states"].shape) for _ in range(2)]  # jump at every step
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(T)
    pipe = SimpleNamespace(components={"transformer": tiny.model}, scheduler=scheduler)
    with tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=8, warmup_steps=1)) as handle:
        for step, t in enumerate(scheduler.timesteps):
            for number in (0, 1) if step in (2, 3, 4) else (0,):
                arguments = {"hidden_states": latents[number][step], "timestep": t.expand(2)}
                tiny(**arguments)
        assert masks(handle)["default"] == "F..F..F"
        assert reasons(handle)["default"] == {
            "calls with the same conditioning changed in number from one step to the next": 2
        }


# Runs


@pytest.mark.parametrize(("stop", "numbers"), [(1, (0,)), (5, (0, 1))])
def test_a_loop_cut_short_leaves_nothing_behind(stop, numbers):
    tiny = make("SD3")
    expected = {number: alone(tiny, number) for number in numbers}
    with tapstudy.apply_tap(tiny.model, CONFIG):
        loop(tiny, [number + 2 for number in numbers], stop=stop)
        found = loop(tiny, numbers)
    for number in numbers:
        assert_same(found[number], expected[number])


def test_another_latent_midway_is_another_run():
    """A run that goes on where the last one stopped, and nothing but the latent tells."""
    tiny = make("SD3")
    noise = torch.randn(2, *tiny.inputs["hidden_states"].shape)
    with tapstudy.apply_tap(tiny.model, CONFIG) as handle:
        for step in range(T):
            tiny(**{**tiny.at(step, T), "hidden_states": noise[int(step >= 3)]})
        assert masks(handle) == {"default": "FF.FF.."}
        assert reasons(handle) == {"default": {"the latent is no continuation of the last one": 1}}


plan = st.lists(
    st.tuples(
        st.sampled_from([(0,), (1,), (0, 1), (1, 0), (2, 0, 1)]),  # windows
        st.sampled_from([5, 7]),  # steps
        st.sampled_from([None, None, 1, 2, 3, 4]),  # cut short after so many
        st.sampled_from(["bare", "stepped"]),  # a scheduler counts
    ),
    min_size=2,
    max_size=4,
)


@settings(max_examples=6)
@given(plan)
# a scheduler left at its last step waits at the timestep that bare loops begin with
@example([((0,), 5, 4, "stepped"), ((0,), 5, None, "bare"), ((0,), 5, None, "bare")])
@example([((0,), 5, None, "stepped"), ((0,), 5, None, "stepped")])
@pytest.mark.parametrize("name", ["SD3", "Lumina2"])
def test_runs_in_any_sequence_are_as_alone(name, runs):
    """Windows, lengths, interruptions, with and without a scheduler: as on fresh handles, to the last bit."""
    tiny = make(name)
    del tiny.model.get_submodule(ADAPTERS[type(tiny.model).__name__].blocks[0])[1:]  # one block is as good as three
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    pipe = SimpleNamespace(components={"transformer": tiny.model}, scheduler=scheduler)

    def drive(numbers, number_of_steps, stop):
        scheduler.set_timesteps(number_of_steps)
        outputs = []
        for step, t in enumerate(scheduler.timesteps[:stop]):
            for number in numbers:
                arguments = inputs(tiny, step, number_of_steps, number)
                share = 1 - t / 1000 if tiny.end > tiny.start else t / 1000
                arguments[tiny.timestep] = (share if max(tiny.start, tiny.end) <= 1 else t).expand(2)
                outputs.append(tiny(**arguments))
            scheduler.step(torch.zeros(1), t, torch.zeros(1))
        return outputs

    def play(place, run):
        numbers, steps, stop, kind = run
        numbers = [3 * place + number for number in numbers]  # every run has noise of its own
        if kind == "stepped":
            return drive(numbers, steps, stop)
        return [output for outputs in loop(tiny, numbers, steps=steps, stop=stop).values() for output in outputs]

    expected = []
    for place, run in enumerate(runs):
        with tapstudy.apply_tap(pipe, CONFIG):
            expected.append(play(place, run))
    with tapstudy.apply_tap(pipe, CONFIG):
        for place, run in enumerate(runs):
            assert_same(play(place, run), expected[place])


# Which scheduler


def sampled(tiny, scheduler, *, steps, factor=1.0):
    """A loop that steps a scheduler, which only this function holds."""
    scheduler.set_timesteps(steps)
    x = factor * tiny.inputs["hidden_states"]
    for t in scheduler.timesteps:
        velocity = tiny(**{**tiny.inputs, "hidden_states": x, "timestep": t.expand(len(x))})
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("attached_to", ["transformer", "pipeline"])
def test_the_scheduler_of_the_loop_counts(attached_to):
    """Also a solver that evaluates twice at one timestep, and a number of steps that only this scheduler tells."""
    tiny = make("SD3")
    idle = diffusers.FlowMatchEulerDiscreteScheduler()
    idle.set_timesteps(30)
    pipe = SimpleNamespace(components={"transformer": tiny.model}, scheduler=idle)
    target = tiny.model if attached_to == "transformer" else pipe
    config = tapstudy.TAPConfig(interval=4, warmup_steps=2, cooldown_steps=2)
    with tapstudy.apply_tap(target, config) as handle:
        sampled(tiny, diffusers.FlowMatchHeunDiscreteScheduler(), steps=5)
        assert masks(handle) == {"default": "FF...F.FF"}
        sampled(tiny, diffusers.FlowMatchEulerDiscreteScheduler(), steps=8)
        assert masks(handle) == {"default": "FF...FFF"}


def test_a_scheduler_replaced_on_the_pipeline():
    tiny = make("SD3")
    pipe = SimpleNamespace(
        components={"transformer": tiny.model}, scheduler=diffusers.FlowMatchEulerDiscreteScheduler()
    )

    def run(steps):
        pipe.scheduler.set_timesteps(steps)
        x = tiny.inputs["hidden_states"]
        for t in pipe.scheduler.timesteps:
            velocity = tiny(**{**tiny.inputs, "hidden_states": x, "timestep": t.expand(len(x))})
            x = pipe.scheduler.step(velocity, t, x, return_dict=False)[0]

    with tapstudy.apply_tap(pipe, tapstudy.TAPConfig(interval=4, warmup_steps=2, cooldown_steps=1)) as handle:
        run(8)
        assert masks(handle) == {"default": "FF...F.F"}
        pipe.scheduler = copy.deepcopy(pipe.scheduler)
        run(10)
        assert masks(handle) == {"default": "FF...F...F"}


def test_a_step_is_found_by_its_timestep():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(12)
    for shown in (lambda t: t, lambda t: t / 1000, lambda t: 1 - t / 1000, lambda t: t.bfloat16()):
        driver = Driver(scheduler)
        for step, t in enumerate(scheduler.timesteps[:6]):
            assert driver.index(Value(shown(t)), after=step) == step
    assert Driver(scheduler).index(Value(torch.tensor(123.0))) is None


def test_a_run_may_give_its_timesteps_in_another_scaling():
    """Values that would mean other steps of the last run, which has no say; also those rounded before the turn."""
    scheduler, watch = diffusers.FlowMatchEulerDiscreteScheduler(), StepWatch()
    for shown in (lambda t: t / 1000, lambda t: 1 - (t / 1000).bfloat16(), lambda t: t):
        scheduler.set_timesteps(sigmas=[0.9, 0.7, 0.5, 0.3, 0.1])
        for step, t in enumerate(scheduler.timesteps):
            assert watch.look(Driver(scheduler), Value(shown(t))) == (step == 0)
            assert watch.index == step


def test_a_context_that_joins_late_has_the_steps_that_are_left():
    tiny = make("SD3")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    config = tapstudy.TAPConfig(interval=4, warmup_steps=2, cooldown_steps=1)
    with tapstudy.apply_tap(tiny.model, config) as handle:
        for step, t in enumerate(scheduler.timesteps):
            arguments = {**tiny.at(step, 10), "timestep": t.expand(2)}
            tiny(**arguments)
            if step >= 5:
                tiny(**{**arguments, "encoder_hidden_states": -tiny.inputs["encoder_hidden_states"]})
        assert masks(handle) == {"default": "FF...F...F", "context-1": "FF..F"}


# Threads


def test_threads_with_loops_of_their_own_work_side_by_side():
    tiny = make("SD3")
    expected = {number: alone(tiny, number) for number in (0, 1)}
    gate = threading.Barrier(2, timeout=60)
    found, errors = {0: [], 1: []}, []

    def work(number):
        try:
            for step in range(T):
                gate.wait()  # the steps of both alternate
                found[number].append(tiny(**inputs(tiny, step, T, number)))
        except BaseException as error:
            errors.append(error)
            gate.abort()

    with tapstudy.apply_tap(tiny.model, CONFIG):
        threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    for number in (0, 1):
        assert_same(found[number], expected[number])


def test_names_given_in_one_thread_are_not_those_of_another():
    tiny = make("Wan")
    inside, done = threading.Event(), threading.Event()

    def work():
        with tiny.model.cache_context("theirs"):
            tiny()
            inside.set()
            done.wait(timeout=60)

    with tapstudy.apply_tap(tiny.model, CONFIG) as handle:
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(timeout=60)
        tiny()
        assert masks(handle) == {"default": "F"}
        done.set()
        thread.join()
