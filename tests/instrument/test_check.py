"""`tapstudy.check` accepts what works and finds what does not: every way to break the mechanism is tried."""

from __future__ import annotations

from dataclasses import replace

import diffusers
import pytest
import torch

import tapstudy
from tapstudy.instrument import hooks, instrument
from tapstudy.instrument.adapters import ADAPTERS
from tests.instrument.tiny_models import VARIANTS, make


@pytest.mark.parametrize("name", VARIANTS)
def test_accepts(name):
    tiny = make(name)
    plain = tiny()
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert report.ok, report
    assert report.model == type(tiny.model).__name__
    assert all(site.computed[0] >= 6 and site.computed[1] == 0 for site in report.sites)
    assert torch.equal(tiny(), plain)
    assert not hasattr(tiny.model, "_diffusers_hook")


def test_schedulers_of_the_caller_do_not_drive_its_calls():
    """As in a notebook, which holds those of its pipelines: both calls are made at one timestep."""
    tiny = make("Flux")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    inputs = {**tiny.inputs, "timestep": scheduler.timesteps[2].repeat(2) / 1000}
    report = tapstudy.check(tiny.model, inputs)
    assert report.ok, report


def test_report_reads_well():
    tiny = make("Flux")
    text = str(tapstudy.check(tiny.model, tiny.inputs, probe_depth=2))
    for part in (
        "FluxTransformer2DModel: TAP works",
        "2 transformer_blocks + 2 single_transformer_blocks",
        "input of single_transformer_blocks.0.attn",
        "(2, 24, 32)",
        "input of norm_out minus input of transformer_blocks.0",
        "(1, 4, 6) tokens (frames, rows, columns)",
        "cache_context, else encoder_hidden_states",
        "full step off by 0.0e+00",
    ):
        assert part in text
    assert "PROBLEM" not in text


# Mutations of the hooks


def probe_that_does_not_stop(monkeypatch):
    def run(self, inner, args, kwargs):
        self.instrument.call.probed = args[0] if args else kwargs["hidden_states"]
        return inner(*args, **kwargs)

    monkeypatch.setattr(hooks.ProbeHook, "run", run)


def probe_that_stops_too_late(monkeypatch):
    def run(self, inner, args, kwargs):
        call = self.instrument.call
        call.probed = args[0] if args else kwargs["hidden_states"]
        output = inner(*args, **kwargs)
        if call.stops:
            raise hooks.StopForward
        return output

    monkeypatch.setattr(hooks.ProbeHook, "run", run)


def blocks_that_run_anyway(monkeypatch):
    def run(self, inner, args, kwargs):
        call = self.instrument.call
        if self.first:
            call.start = args[0] if args else kwargs["hidden_states"]
        if self.place == 0 and call.stops:
            try:
                inner(*args, **kwargs)
            except hooks.StopForward:
                return hooks.pass_through(self.stream, args, kwargs)
        return inner(*args, **kwargs)

    monkeypatch.setattr(hooks.BlockHook, "run", run)


def residual_a_thousandth_off(monkeypatch):
    predicted = instrument.predicted
    monkeypatch.setattr(instrument, "predicted", lambda *given, **like: 1.001 * predicted(*given, **like))


def residual_of_the_neighbouring_token(monkeypatch):
    predicted = instrument.predicted
    monkeypatch.setattr(instrument, "predicted", lambda *given, **like: predicted(*given, **like).roll(1, dims=1))


def residual_of_the_other_sample(monkeypatch):
    predicted = instrument.predicted
    monkeypatch.setattr(instrument, "predicted", lambda *given, **like: predicted(*given, **like).flip(0))


def full_step_that_changes_the_tail(monkeypatch):
    observe = instrument.Instrument._observe

    def change(self, call, seen):
        observe(self, call, seen)
        return 1.001 * seen if isinstance(seen, torch.Tensor) else seen

    monkeypatch.setattr(instrument.Instrument, "_observe", change)


@pytest.mark.parametrize(
    ("name", "mutate", "told"),
    [
        ("Kandinsky5", probe_that_does_not_stop, "nothing was skipped"),
        ("CogVideoX", probe_that_stops_too_late, "should not have run"),
        ("Lumina2", blocks_that_run_anyway, "should not have run"),
        ("Flux2", residual_a_thousandth_off, "is off by"),
        ("Wan", residual_of_the_neighbouring_token, "is off by"),
        ("ZImage", residual_of_the_other_sample, "is off by"),
    ],
)
def test_finds_broken_hooks(monkeypatch, name, mutate, told):
    tiny = make(name)
    mutate(monkeypatch)
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert not report.ok
    assert "does NOT work" in str(report)
    assert any(told in problem for problem in report.problems), report


def test_finds_a_changed_full_step(monkeypatch):
    full_step_that_changes_the_tail(monkeypatch)
    tiny = make("Wan")
    with torch.no_grad():
        report = tapstudy.check(tiny.model, tiny.inputs)
    assert any("change the output of a full step" in problem for problem in report.sites[0].problems)


# Wrong rows


ROW_MUTATIONS = {
    ("Flux2", "streams", (0, None)): "image stream",
    ("Wan", "attention", "attn2"): "should not have run",
    ("Lumina2", "image_start", (None,)): "is off by",
    ("Wan", "grid", lambda model, arguments: (1, 2, 3)): "is off by",
    ("Wan", "grid", lambda model, arguments: (3, 3, 3)): "nothing was skipped",
    ("Wan", "tail", "patch_embedding"): "nothing was skipped",
}


@pytest.mark.parametrize(("name", "field", "value"), ROW_MUTATIONS)
def test_finds_a_wrong_row(monkeypatch, name, field, value):
    tiny = make(name)
    cls = type(tiny.model).__name__
    monkeypatch.setitem(ADAPTERS, cls, replace(ADAPTERS[cls], **{field: value}))
    report = tapstudy.check(tiny.model, tiny.inputs)
    assert not report.ok
    assert any(ROW_MUTATIONS[name, field, value] in problem for problem in report.problems), report


def test_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="no supported transformer in Linear"):
        tapstudy.check(torch.nn.Linear(2, 2), {})
