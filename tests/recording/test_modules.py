"""Outputs of modules that are named by their paths."""

import numpy as np
import pytest
import torch

import tapstudy
from tapstudy.instrument.adapters import find_adapter
from tapstudy.instrument.module_outputs import Sequences, WatchedModule
from tapstudy.policies.tap import TAPPolicy
from tapstudy.recording.calls import pipeline_arguments
from tapstudy.recording.rebuild import read_configuration, recorder_arguments
from tapstudy.recording.reduce import Norms
from tapstudy.recording.store import SampleWriter
from tests.pipelines import text
from tests.pipelines.tiny import FACTORIES
from tests.recording.runs import CONFIG, STEPS, calls_of
from tests.table import each_row

CALLS = calls_of([(1, 5), (2, 6)])


def record(pipe, path, modules, calls=CALLS, **changes):
    arguments = {"config": CONFIG, "fields": ("choice",), "progress": False} | changes
    return tapstudy.record(pipe, calls, path, modules=modules, **arguments).load()


def outputs_of(pipe, call, paths):
    """Plain hooks of torch: path -> all that the module gave, in order."""
    seen = {path: [] for path in paths}
    hooks = [
        pipe.transformer.get_submodule(path).register_forward_hook(
            lambda _m, _a, out, path=path: seen[path].append(out)
        )
        for path in paths
    ]
    pipe(**pipeline_arguments(call))
    for hook in hooks:
        hook.remove()
    return seen


def test_image_and_text_of_flux(tmp_path):
    """The image's tokens of either stack; text, and what is no sequence, in dimensions of their own."""
    pipe, call = FACTORIES["flux"]()
    call = {**call, "prompt": text.PROMPTS, "seed": [1, 2]}
    modules = {
        "attn0": "transformer_blocks.0.attn", "block1": "transformer_blocks.1",
        "single": "single_transformer_blocks.0.attn",
        "last": "single_transformer_blocks.1", "words": "transformer_blocks.0.ff_context", "clock": "time_text_embed",
        "out": "proj_out",
    }  # fmt: skip
    run = record(pipe, tmp_path / "run", modules, [call])
    seen = outputs_of(pipe, call, modules.values())
    words = text.LENGTH
    assert run.sizes["token"] == 24
    for name, path in modules.items():
        variable = run[name].isel(context=0)
        assert variable.attrs == {"long_name": f"output of {path}", "units": "1", "module": path}
        for step, output in enumerate(seen[path]):
            output = output[{"block1": 1, "last": 1}.get(name, 0)] if isinstance(output, tuple) else output
            output = output[:, words:] if name == "single" else output
            np.testing.assert_array_equal(variable.isel(step=step), output)
    own = {name: run[name].dims[3:] for name in modules}
    assert own == {
        **{name: ("token", f"{name}_channel") for name in ("attn0", "block1", "single", "last", "out")},
        "words": ("words_axis1", "words_channel"), "clock": ("clock_channel",),
    }  # fmt: skip
    assert not any(module._forward_hooks for module in pipe.transformer.modules())


def test_along_the_accelerated_trajectory(tiny_pipe, tmp_path):
    """Every pass beside a prediction is a full one; batched guidance is split into its branches."""
    modules = {"feed": "transformer_blocks.1.ff", "size": "transformer_blocks.2.attn1"}
    run = record(tiny_pipe, tmp_path, modules, config=None, policy=TAPPolicy(CONFIG), reduce={"size": Norms()})
    with tapstudy.apply_policy(tiny_pipe, TAPPolicy(CONFIG), shadow=True):
        seen = outputs_of(tiny_pipe, CALLS[0], modules.values())
    assert run["is_full"].min() == 0
    for step, output in enumerate(seen["transformer_blocks.1.ff"]):
        at = run["feed"].isel(step=step).transpose("context", "sample", ...)
        np.testing.assert_array_equal(np.concatenate(at), output)
    norms = torch.stack(seen["transformer_blocks.2.attn1"]).norm(dim=-1).unflatten(1, (2, 2))  # step, context, sample
    np.testing.assert_array_equal(run["size"].isel(size_channel=0), norms.permute(2, 1, 0, 3))


def test_where_a_module_did_not_run(tiny_pipe, tmp_path):
    feed = tiny_pipe.transformer.transformer_blocks[1].ff
    asked = []

    class Sometimes(torch.nn.Module):
        def forward(self, hidden):
            asked.append(1)
            return feed(hidden) if len(asked) % STEPS not in (4, 5) else torch.zeros_like(hidden)

    outer = Sometimes()
    outer.inner = feed
    tiny_pipe.transformer.transformer_blocks[1].ff = outer
    modules = {"feed": "transformer_blocks.1.ff.inner"}
    with pytest.warns(UserWarning, match=r"feed \(.*ff.inner\) did not run at 2 steps \(the first is 3\).* as NaN"):
        run = record(tiny_pipe, tmp_path / "run", modules)
    missing = np.isnan(run["feed"]).all(["sample", "context", "token", "feed_channel"])
    assert np.flatnonzero(missing).tolist() == [3, 4]
    assert np.isnan(run["feed"]).any(["sample", "context", "token", "feed_channel"]).equals(missing)
    asked.extend([1] * 3)
    with pytest.raises(tapstudy.RecordingError, match=r"feed \(.*\) did not run in the first step"):
        record(tiny_pipe, tmp_path / "other", modules)


def test_resumed(tiny_pipe, tmp_path, monkeypatch):
    modules, calls = {"feed": "transformer_blocks.1.ff"}, calls_of([(1, 5)], [(2, 6)])
    whole = record(tiny_pipe, tmp_path / "whole", modules, calls)
    finish = SampleWriter.finish
    with monkeypatch.context() as patch:
        patch.setattr(SampleWriter, "finish", lambda self: finish(self) if self.sample == 0 else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record(tiny_pipe, tmp_path / "cut", modules, calls)
    with pytest.raises(
        tapstudy.RecordingError, match=r"modules, feed: 'transformer_blocks.1.ff' there, 'tr.*2.ff' asked"
    ):
        record(tiny_pipe, tmp_path / "cut", {"feed": "transformer_blocks.2.ff"}, calls)
    asked = recorder_arguments(read_configuration(tmp_path / "cut"), tmp_path / "cut")
    del asked["model"]
    cut = tapstudy.record(tiny_pipe, path=tmp_path / "cut", model="LabelPipeline", progress=False, **asked).load()
    np.testing.assert_array_equal(cut["feed"], whole["feed"])
    next(path for path in (tmp_path / "cut" / "feed" / "c" / "1").rglob("*") if path.is_file()).unlink()
    with pytest.raises(tapstudy.RecordingError, match=r"feed of sample 1 .* is missing; record again"):
        tapstudy.open_recording(tmp_path / "cut")
    np.testing.assert_array_equal(record(tiny_pipe, tmp_path / "cut", modules, calls)["feed"], whole["feed"])


@each_row(
    ("modules", "error", "message"),
    [
        ({"a": "transformer_blocks.1.atn1"}, ValueError, r"no module 'transformer_blocks.1.atn1' .*mean \S*1.attn1, "),
        ({"a": "transformer_blocks"}, ValueError, "no module 'transformer_blocks' that runs"),
        ({"a": ""}, ValueError, "no module '' that runs"),
        ({"probe": "norm_out"}, ValueError, "'probe' cannot be the name"),
        ({"token": "norm_out"}, ValueError, "'token' cannot be the name"),
        ({"a b": "norm_out"}, ValueError, "'a b' cannot be the name"),
        ({"a": 3}, TypeError, "the path of 'a' must be a text"),
    ],
)
def test_modules_that_cannot_be_meant(tmp_path_factory, modules, error, message):
    from tests.conftest import make_tiny_pipe

    pipe, path = make_tiny_pipe(), tmp_path_factory.mktemp("asked") / "run"
    pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("ran before the paths were looked at"))
    with pytest.raises(error, match=message):
        record(pipe, path, modules)
    assert not path.exists()


@each_row(
    ("outputs", "message"),
    [
        ([torch.zeros(2, 3), torch.zeros(2, 3)], "ran 2 times in one pass"),
        ([torch.zeros(3, 3)], r"gave torch.float32 of shape \(3, 3\), not real numbers with a row for each of 2"),
        ([torch.zeros(2, 3, dtype=torch.complex64)], "complex64"),
        ([("text", None)], "gave tuple"),
    ],
)
def test_outputs_that_cannot_be_stored(tiny_pipe, outputs, message):
    model = tiny_pipe.transformer
    watched = WatchedModule.find(model, find_adapter(model), "norm_out")
    with pytest.raises(RuntimeError, match=message):
        Sequences(16, 16, None, {0: 0}).read(watched, outputs, 2)


@each_row(
    ("length", "block_list", "first"),
    [
        (24 + 8, 0, 0),  # image and reference
        (24, 0, 0),
        (7 + 24 + 8, 1, 7),  # behind text
        (24 + 8, 1, 0),
        (7, 0, None),
        (7, 1, None),
        (5, 0, None),
    ],
)
def test_where_image_tokens_are(length, block_list, first):
    tokens = Sequences(24, 24 + 8, 7, {0: 0, 1: 7}).image_tokens(length, block_list)
    assert (tokens and tokens.start) == first
    assert tokens is None or tokens.count == 24


def test_text_as_long_as_the_image_is_not_taken_for_it(tmp_path):
    """Where nothing but the length tells; a block and its attention are known to give the image."""
    pipe, call = FACTORIES["stable_diffusion_3"]()  # 12 tokens from either tokenizer, and 4 x 6 tokens of the image
    inside = {"block": "transformer_blocks.1", "attn": "transformer_blocks.1.attn", "feed": "transformer_blocks.1.ff"}
    run = record(pipe, tmp_path / "run", inside, [{**call, "seed": 1}])
    assert {name: run[name].dims[3] for name in inside} == {"block": "token", "attn": "token", "feed": "feed_axis1"}
    blocks = outputs_of(pipe, {**call, "seed": 1}, ["transformer_blocks.1"])["transformer_blocks.1"]
    streams = torch.stack([image for _, image in blocks])  # (step, context, token, channel)
    np.testing.assert_array_equal(run["block"][0].transpose("step", "context", ...), streams)
