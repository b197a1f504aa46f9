"""FLOPs of a run, counted without values, against torch's counter on the run itself."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import tapstudy
from tapstudy.bench.flops import transformer_flops
from tapstudy.instrument.flops import count_flops, flop_counter
from tapstudy.policies import TAPPolicy, TeaCachePolicy
from tests.pipelines import tiny


def test_attention_counts_on_the_cpu():
    query, key = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8)
    attention = lambda: functional.scaled_dot_product_attention(query, key, key)  # noqa: E731
    assert count_flops(attention) == 2 * (2 * 2 * 3 * 5 * 7 * 8)


@pytest.fixture
def own(monkeypatch):
    """List what TAP computes itself, which is no part of the model."""
    found = []
    for name in ("observe", "predict"):
        method = getattr(TAPPolicy, name)

        def watched(*arguments, method=method):
            with flop_counter() as counter:
                answer = method(*arguments)
            found.append(counter.get_total_flops())
            return answer

        monkeypatch.setattr(TAPPolicy, name, watched)
    return found


def counted(pipe, call, **options):
    """Return FLOPs of the transformer in a run of the pipeline."""
    with torch.no_grad():
        return transformer_flops(pipe, lambda: tiny.sample(pipe, call, **options))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("flux_kontext", {"interval": 3}),  # tokens of a reference image
        ("stable_diffusion_3", {"interval": 4, "residual": "latent"}),  # two guidance branches in a batch
        ("qwen_image", {"full_steps": (0, 1, 4), "orders": (0, 1), "probe_depth": 1}),
    ],
)
def test_a_run_without_values_takes_what_the_run_took(name, settings, own):
    (pipe, call), steps = tiny.FACTORIES[name](), {"num_inference_steps": 6}
    full = counted(pipe, call, **steps)
    with tapstudy.tap(pipe, **settings) as handle:
        spent = counted(pipe, call, **steps) - sum(own)
        inside = handle.summary()
        assert inside.flops_ratio == pytest.approx(full / spent, rel=1e-12), inside.flops_note
    assert handle.summary().flops_ratio == inside.flops_ratio


def test_what_runs_beside_and_what_the_probe_decides_count(own):
    pipe, call = tiny.FACTORIES["dit"]()
    full = counted(pipe, call)
    with tapstudy.apply_policy(pipe, TeaCachePolicy(0.5)) as handle:
        spent = counted(pipe, call)
    assert "." in handle.summary().mask
    assert handle.summary().flops_ratio == pytest.approx(full / spent, rel=1e-12), handle.summary().flops_note
    with tapstudy.apply_policy(pipe, TAPPolicy(tapstudy.TAPConfig(interval=4)), shadow=True) as handle:
        spent = counted(pipe, call) - sum(own)
    assert "s" in handle.summary().mask
    assert spent >= full
    assert handle.summary().flops_ratio == pytest.approx(full / spent, rel=1e-12), handle.summary().flops_note


def test_a_history_that_begins_anew(own):
    """Two sizes in one run of a bare transformer: each counts with its own shapes."""
    pipe, _ = tiny.FACTORIES["dit"]()
    model = pipe.transformer
    sizes = [8] * 4 + [16] * 6

    latents = {size: torch.randn(1, 4, size, size) for size in sizes}

    def run():
        for step, size in enumerate(sizes):
            sample = latents[size] * (1 - step / 100)
            with torch.no_grad():
                model(sample, timestep=torch.tensor([900 - 50 * step]), class_labels=torch.tensor([1]))

    full = count_flops(run)
    with tapstudy.tap(model, interval=3) as handle:
        spent = count_flops(run) - sum(own)
    assert handle.summary().mask.count("F") > 5
    assert handle.summary().flops_ratio == pytest.approx(full / spent, rel=1e-12), handle.summary().flops_note


def test_nothing_of_the_model_is_touched(tiny_pipe, sample):
    with tapstudy.tap(tiny_pipe, interval=3) as handle:
        images = sample(steps=8)
        state = {name: (value.data_ptr(), value.device) for name, value in tiny_pipe.transformer.state_dict().items()}
        before = {id(module): set(vars(module)) for module in tiny_pipe.transformer.modules()}
        torch.manual_seed(0)
        drawn = torch.get_rng_state()
        ratio = handle.summary().flops_ratio
        assert torch.equal(torch.get_rng_state(), drawn)
        assert {n: (v.data_ptr(), v.device) for n, v in tiny_pipe.transformer.state_dict().items()} == state
        assert {id(module): set(vars(module)) for module in tiny_pipe.transformer.modules()} == before
        assert torch.equal(sample(steps=8), images)
    assert 1 < ratio < 8 / 3
    assert handle.summary().to_dict()["flops_ratio"] == ratio
    assert f"FLOPs: a full run takes {ratio:.2f} times as many" in handle.summary()._repr_html_()


def test_a_model_that_reads_values_says_so():
    pipe, call = tiny.FACTORIES["lumina2"]()
    with tapstudy.tap(pipe, interval=3) as handle:
        tiny.sample(pipe, call)
    told = handle.summary().to_dict()
    assert told["flops_ratio"] is None
    assert told["flops_note"].startswith("FLOPs cannot be counted without values (")
    assert "FLOPs cannot be counted" in handle.summary()._repr_html_()


def test_nobody_who_does_not_ask_pays(tiny_pipe, sample, monkeypatch):
    monkeypatch.setattr(FlopCounterMode, "__enter__", lambda _: pytest.fail("counted"))
    monkeypatch.setattr(nn.Module, "to", lambda *_: pytest.fail("moved"))
    with tapstudy.tap(tiny_pipe, interval=3) as handle:
        sample(steps=6)
    assert "skipped" in str(handle.summary())
