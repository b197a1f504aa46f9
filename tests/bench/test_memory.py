"""Measured memory is what the formula says, to the byte."""

import numpy as np
import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.bench.speed.memory import (
    Features,
    held_bytes,
    history_bytes,
    memory,
)
from tapstudy.bench.speed.methods import THIRD_PARTY, Plan
from tapstudy.bench.speed.real_sizes import history_bytes as one_sample_bytes
from tapstudy.cli import app
from tapstudy.policies.tap import TAPPolicy
from tests.command_line import invoke
from tests.conftest import make_tiny_pipe
from tests.instrument.tiny_models import make

FLUX_DEV = Features(1, 4096, 3072, 3072, torch.bfloat16)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_pipe().save_pretrained(folder)
    return str(folder)


def test_flux_dev_by_hand():
    """3 anchors x 4096 tokens x 3072 channels x (2 + 4) bytes; half of the residuals' bytes are gone in bfloat16."""
    assert history_bytes(FLUX_DEV, anchors=3, history_dtype=torch.float32) == 226_492_416
    assert history_bytes(FLUX_DEV, anchors=3, history_dtype=torch.bfloat16) == 150_994_944
    assert history_bytes(FLUX_DEV, anchors=3, history_dtype=torch.float32) == one_sample_bytes(4096, 3072)
    latent = Features(1, 4096, 3072, 64, torch.bfloat16)  # 64 channels of the packed latent in place of 3072
    assert history_bytes(latent, anchors=3, history_dtype=torch.float32) == 3 * 4096 * (3072 * 2 + 64 * 4)


@pytest.mark.parametrize(
    ("steps", "interval", "warmup", "residual", "dtype"),
    [
        (12, 8, 3, "latent", torch.bfloat16),
        (3, 3, 1, "hidden", torch.float32),
    ],
)
def test_a_model_that_runs(tiny_pipe, sample, steps, interval, warmup, residual, dtype):
    """Two images and both branches of guidance, 16 tokens, 32 channels, latents of 4 values a token."""
    plan = Plan(steps=steps, interval=interval, warmup_steps=warmup)
    config = TAPConfig(interval=interval, warmup_steps=warmup, history_dtype=dtype, residual=residual)
    with apply_policy(tiny_pipe, TAPPolicy(config)) as handle:
        sizes = []
        handle.listen(lambda event: sizes.append(held_bytes(event.policy.anchors)))
        sample(steps=steps)
    shape = Features(4, 16, 32, 32 if residual == "hidden" else 4, torch.float32)
    anchors = min(3, len(plan.full))
    formula = history_bytes(shape, anchors=anchors, history_dtype=dtype)
    assert sizes[-1] == handle.summary().contexts[0].cache_bytes == formula


def test_calls_of_several_contexts():
    """Guidance in two calls: twice one history."""
    tiny, config = make("Wan"), TAPConfig(interval=4)
    with apply_policy(tiny.model, TAPPolicy(config)) as handle:
        for step in range(5):
            for name in ("cond", "uncond"):
                with handle.context(name), torch.no_grad():
                    tiny.model(**tiny.at(step, 6))
        anchors = []
        handle.listen(lambda event: anchors.append(event.policy.anchors))
        for name in ("cond", "uncond"):
            with handle.context(name), torch.no_grad():
                tiny.model(**tiny.at(5, 6))
    batch, tokens, width = anchors[0].probes[0].shape
    shape = Features(batch, tokens, width, anchors[0].residuals[0].shape[-1], anchors[0].probes[0].dtype)
    assert held_bytes(anchors) == 2 * history_bytes(shape, anchors=3, history_dtype=torch.float32)


def test_held_bytes_count_storages_once():
    class Owner:
        pass

    owner, base = Owner(), torch.zeros(10)
    owner.all, owner.part, owner.more = base, [base[2:4]], {"x": (torch.zeros(3, dtype=torch.float64), "text", owner)}
    owner.module = torch.nn.Linear(100, 100)
    assert held_bytes(owner, base) == 10 * 4 + 3 * 8
    # a view keeps all of its storage
    assert held_bytes(base[:1]) == 40
    assert held_bytes(torch.empty(5, device="meta"), torch.empty(5, device="meta")) == 40


def test_table(model):
    found = memory([model, "flux-dev"], Plan(steps=12), batch_size=1, device="cpu")
    assert found["model"].values.tolist() == ["tiny", "flux-dev"]
    assert found["method"].values.tolist() == ["tap float32", "tap bfloat16", *THIRD_PARTY]
    assert all({"long_name", "units"} <= set(values.attrs) for values in found.data_vars.values())
    tap = found.isel(method=[0, 1])
    assert tap["history"].equals(tap["history_formula"].rename("history"))
    assert tap["history"].sel(model="flux-dev").values.tolist() == [226_492_416, 150_994_944]
    tiny = found.sel(model="tiny")
    # MagCache keeps one residual of two samples, 16 tokens and 32 channels in float32, at least
    assert tiny["history"].sel({"method": "peer-magcache"}) >= 2 * 16 * 32 * 4
    # one that finds nothing to act on in this class
    assert np.isnan(tiny["history"].sel({"method": "peer-taylorseer"}))
    assert found["peak"].isnull().all()


def test_command(model, tmp_path):
    out = tmp_path / "memory.nc"
    options = ["--model", "flux-dev,hunyuan-video", "--device", "cpu", "--out", str(out)]
    result = invoke(app, ["bench", "memory", *options, "--markdown"])
    assert result.exit_code == 0, result.output
    assert "| flux-dev | tap float32 | 226.492 | 226.492 |" in result.output
    assert "| hunyuan-video | tap bfloat16 | 4379.443 | 4379.443 |" in result.output
    assert out.is_file()
    for arguments, message in (
        (["--model", "flux-devv"], "did you mean 'flux-dev'"),
        (["--history-dtypes", "int8"], "--history-dtypes must be"),
    ):
        result = invoke(app, ["bench", "memory", *arguments])
        assert result.exit_code == 2
        assert message in result.output
