"""Where the host would wait for a GPU, and what a GPU would be asked to do at a skip step."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
import torch

import tapstudy
from tapstudy.bench.speed.subjects import EulerLoop
from tapstudy.instrument.adapters import ADAPTERS
from tests.conftest import make_tiny_pipe
from tests.gpu_free.models import BARE, MODELS, WIDTH, bare, real
from tests.instrument.tiny_models import make
from tests.policies.every import every_partial_policy, every_policy

# Of TAP's own work in a skip step. The fused kernels move three probes, three residuals in float32, the probe and the
# sum: twelve times a probe. The rest brings that into the model's dtype and adds it to its stream.
LAUNCHES, PROBES_MOVED = 12, 25
# what diffusers' own code waits for, in every pass
MODELS_OWN = {"QwenImageTransformer2DModel": {"compute_text_seq_len_from_mask"}}


def waits(tallies, but=()):
    """All waits of the package's making, without those known of a model."""
    found = sum((tally.waits for tally in tallies), Counter())
    return {wait: n for wait, n in found.items() if not wait[1].endswith(tuple(but) or "-")}


# those of SD3 and HunyuanVideo do nothing beside the blocks that these do not
@pytest.mark.parametrize("name", [name for name in MODELS if not name.startswith(("SD3", "Hunyuan"))])
def test_a_skip_step_of_a_real_model_waits_for_nothing(gpus, name):
    with gpus() as trace:
        loop = real(trace, name)
        with tapstudy.tap(loop, interval=3) as handle:
            trace.watch(handle)
            loop(7)
        (context,) = handle.summary().contexts
        assert context.mask == "FFF..F."
        assert context.fail_opens == {}
        # the first call looks at the ids of the tokens
        assert waits((tally for _, tally in trace.passes[1:]), but=MODELS_OWN.get(name, ())) == {}
        skip = trace.of("skip")[1]  # the first one multiplies the anchors with each other
        pytest.importorskip("triton")
        assert sum(skip.own.values()) <= LAUNCHES
        probe = context.cache_bytes / 9  # of three anchors, with residuals in single precision
        assert skip.own_moved <= PROBES_MOVED * probe, skip.own_moved / probe


# what these read is whether a pass must be full after all, or tokens are wrong: no
NO = ("first block", "dbcache", "hsa", "ras", "tap tokens", "tap tokens error", "toca")
# run in full here: by nature, until it knows better, because values that are not there say so, or with another model
UNSEEN = ("full", "oracle", "similarity", "temporal delta", "model switch")


def by_class():
    """Names of the policies by their class: those of one class are the same code under other options."""
    found = defaultdict(list)
    for key, policy in every_policy(WIDTH).items():
        if key not in UNSEEN:
            found[type(policy).__name__].append(key)
    return found


@pytest.mark.parametrize("keys", [pytest.param(keys, id=name) for name, keys in by_class().items()])
def test_a_policy_waits_as_often_as_it_says(gpus, monkeypatch, keys):
    monkeypatch.setitem(ADAPTERS, "Bare", BARE)
    for key in keys:
        try:
            compare_waits(gpus, key)
        except BaseException as error:
            error.add_note(key)
            raise


def compare_waits(gpus, key):
    policy = every_policy(WIDTH)[key]
    tiny = make("SD3") if key in every_partial_policy() else bare()  # the others run nothing of the model
    with gpus(answer=lambda tensor: 0 if key in NO else 1) as trace:
        loop = EulerLoop(trace.on(tiny.model), trace.on(tiny.inputs), time_scale=1000)
        with tapstudy.apply_policy(loop, policy) as handle:
            trace.watch(handle)
            loop(6)
        assert handle.summary().mask[0] == "F"
        skips = trace.of("skip") + trace.of("partial")
        assert skips
        most = max(sum(waits([tally]).values()) for tally in skips)
        assert most <= policy.waits
        assert (most > 0) == (policy.waits > 0) or key == "nonlinear dmd"  # a line, before there are snapshots enough
        undecided = trace.of("full")[1:]
        assert max((sum(waits([tally]).values()) for tally in undecided), default=0) <= policy.decides_by_probe


def test_the_embedded_pipeline_waits_for_nothing(gpus):
    """Its labels are one object for all steps: contexts are told apart without a look at values."""
    pipe = make_tiny_pipe()
    with gpus() as trace:
        trace.on(pipe.transformer)
        with tapstudy.tap(pipe, interval=4) as handle:
            trace.watch(handle)
            generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
            pipe([1, 2], 8, 2.0, generator=generators, output_type="latent")
        assert handle.summary().mask == "FFF...F."
        assert waits(tally for _, tally in trace.passes) == {}


def test_the_harness_sees_what_waits(gpus):
    with gpus() as trace:
        numbers = trace.on(torch.arange(3.0))
        assert numbers.tolist() == [0, 1, 2]
        assert float(numbers.sum()) == 1  # nobody knows
        assert bool((numbers > 0).any())
        numbers[numbers > 0]
        torch.linalg.eigh(torch.eye(3, device="cuda"))
        torch.ones(3).to("cuda", non_blocking=True)
        torch.ones(3).to("cuda")
        numbers.to("cuda:1")
        torch.cuda.synchronize()
        seen = Counter(what for what, _ in trace.tally.waits.elements())
        assert seen == {
            "tolist": 1, "__float__": 1, "__bool__": 1, "index by a mask": 1, "_linalg_eigh": 1, "copy cpu -> cuda": 2,
            "cuda.synchronize": 1,
        }  # fmt: skip
        assert sum(trace.tally.copies.values()) == 2
        with pytest.raises(RuntimeError, match="two devices"):
            numbers + numbers.to("cuda:1")
        with pytest.raises(TypeError, match="numpy"):
            numbers.numpy()


def test_live_storages_are_counted(gpus):
    with gpus() as trace:
        before = trace.live
        numbers = torch.zeros(1000, device="cuda")
        view = numbers[:10]
        more = numbers + 1
        assert trace.live - before == 8000
        del numbers, more
        assert trace.live - before == 4000
        del view
        assert trace.live == before
        assert trace.tally.peak - before == 8000
