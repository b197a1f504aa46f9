"""What a handle tells, as numbers, JSON and HTML."""

import copy
import dataclasses
import gc
import json
import math
import pickle
import weakref
from dataclasses import replace

import pytest
import torch

import tapstudy
from tapstudy.instrument.summary import ContextSummary, Summary
from tapstudy.policies.tap import TAPPolicy
from tests.instrument.tiny_models import make


def test_numbers():
    seconds = {"full": [3.0, 1.0, 1.0, 1.0], "skip": [0.5] * 4}
    context = ContextSummary("transformer", "a < b", "FFF.F...", {"m=1": 7}, seconds, 2**20, {})
    summary = Summary([context, context], ["<note>"])
    assert summary.share_skipped == 0.5
    assert summary.speed_up == 16 * 1.0 / 16.0  # sixteen passes at the median, over 2 x (6 + 2) seconds
    told = json.loads(summary.to_json())
    assert told["share_skipped"] == 0.5
    assert told["contexts"][0]["mask"] == "FFF.F..."
    assert told["contexts"][0]["seconds"]["skip"] == [0.5] * 4
    page = summary._repr_html_()
    assert page.count("<td title=") == 16
    assert page.count("step 3: skipped") == 2
    assert "a &lt; b" in page
    assert "&lt;note&gt;" in page
    assert "50 % of the passes skipped; the transformer was 1.00 times as fast" in str(summary)


def test_choices_may_be_of_any_integers():
    class Narrow(TAPPolicy):
        def predict(self, step, probe, truth=None):
            found = super().predict(step, probe, truth)
            return replace(found, choice=found.choice.to(torch.int16))

    config, tiny, found = tapstudy.TAPConfig(interval=3, warmup_steps=1), make("DiT"), []
    for policy in (TAPPolicy(config), Narrow(config)):
        with tapstudy.apply_policy(tiny.model, policy) as handle:
            for step in range(4):
                tiny(**tiny.at(step, 4))
        found.append(handle.summary().contexts[0].choices)
    assert found[0] == found[1]


def test_before_anything_has_run(tiny_pipe):
    with tapstudy.tap(tiny_pipe) as handle:
        summary = handle.summary()
    assert math.isnan(summary.share_skipped)
    assert math.isnan(summary.speed_up)
    assert json.loads(summary.to_json()) == {
        "speed_up": None, "share_skipped": None, "flops_ratio": None, "flops_note": None, "contexts": [], "notes": []
    }  # fmt: skip
    assert summary._repr_html_() == "<p>nothing has run yet</p>"


def test_a_run(tiny_pipe, sample):
    with tapstudy.tap(tiny_pipe, interval=4) as handle:
        sample(steps=11)
    summary = handle.summary()
    assert summary.share_skipped == 6 / 11  # FFF...F...
    assert summary.speed_up > 0


def test_copies_and_pickles_need_no_model(tiny_pipe, sample):
    with tapstudy.tap(tiny_pipe, interval=4) as handle:
        sample(steps=5)
    summary = handle.summary()
    text = pickle.dumps(summary)
    assert len(text) < 10_000
    for other in (pickle.loads(text), copy.deepcopy(summary)):
        assert other == summary
        assert other.flops_ratio == summary.flops_ratio > 1


def test_fields_hold_no_model(tiny_pipe, sample, monkeypatch):
    with tapstudy.tap(tiny_pipe, interval=4) as handle:
        sample(steps=5)
    summary = handle.summary()
    monkeypatch.setattr(type(tiny_pipe.transformer), "__deepcopy__", lambda *_: pytest.fail("copied"), raising=False)
    fields = dataclasses.asdict(summary)
    assert fields == {"contexts": [dataclasses.asdict(context) for context in summary.contexts], "notes": []}
    assert json.loads(json.dumps(fields)) == fields


def test_without_a_full_pass_the_speed_is_not_known():
    context = ContextSummary("transformer", "default", "pp..", {}, {"partial": [1.0, 1.0], "skip": [0.1, 0.1]}, 0, {})
    summary = Summary([context])
    assert "nan" not in str(summary)
    assert "50 % of the passes skipped; how much faster the transformer was is not known" in str(summary)
    page = summary._repr_html_()
    assert "0 full, 2 run in part and 2 skipped, 0.00 MiB" in page
    assert page.count("run in part") == 3  # two cells, and the line
    assert "nan times" not in page


def test_the_page_says_nothing_of_flops_that_nobody_counted():
    context = ContextSummary("transformer", "default", "F.", {}, {"full": [1.0], "skip": [0.1]}, 0, {})
    assert "FLOPs" not in Summary([context])._repr_html_()


def test_the_mask_is_of_the_context_with_most_steps():
    """Not of passes aside, such as one that fills a cache of reference pictures, though they come first."""
    contexts = [
        ContextSummary(name, context, mask, {}, {}, 0, {})
        for name, context, mask in (("high", "extract", "F"), ("high", "cond", "F.F"), ("high", "uncond", "FFF"),
                                    ("low", "cond", "F."))
    ]  # fmt: skip
    assert Summary(contexts).mask == "F.FF."


@pytest.mark.parametrize("read", [True, False])
def test_a_summary_keeps_no_model_alive(read):
    def told():
        tiny = make("DiT")
        with tapstudy.tap(tiny.model, interval=3, warmup_steps=1) as handle:
            for step in range(4):
                tiny.model(**tiny.at(step, 4))
        summary = handle.summary()
        assert not read or summary.flops_ratio > 1
        return summary, weakref.ref(tiny.model)

    summary, model = told()
    gc.collect()
    assert model() is None
    if read:
        assert summary.flops_ratio > 1
    else:
        assert math.isnan(summary.flops_ratio)
        assert "the model is gone" in summary.flops_note
