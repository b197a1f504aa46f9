"""Policies that decide once they see the probe, the two kinds of probe, and the four sites of the residual."""

import pytest
import torch

from tapstudy import apply_policy
from tapstudy.instrument.adapters import find_adapter
from tapstudy.policies.base import Policy, Prediction
from tests.instrument.replay import Replay, relative_error, steps
from tests.instrument.tiny_models import CLASSES, KINDS, make

SITES = ["hidden", "tail", "latent", "output"]


class Gate(Policy):
    """Full at step 0; `late` steps run in full once the probe is seen, `early` ones without looking at it."""

    needs_probe = True
    decides_by_probe = True

    def __init__(self, *, late=(), early=(), site="hidden", kind="modulated", depth=0):
        self.late, self.early = late, early
        self.residual_site, self.probe_kind, self.probe_depth = site, kind, depth
        self.log = []

    def wants_full(self, step):
        return step == 0 or step in self.early

    def wants_full_given(self, step, probe):
        assert probe.shape[-3:] == (4, 16, 4 if self.probe_kind == "latent" else 32)
        return step in self.late

    def observe(self, step, probe, residual):
        self.log.append(("full", step))
        self.residual = residual.clone()

    def predict(self, step, probe, truth=None):
        return Prediction(self.residual)

    def skipped(self, step, probe, prediction):
        self.log.append(("skip", step))
        assert torch.equal(prediction.residual, self.residual)
        assert probe is not None


@pytest.mark.filterwarnings("ignore:no step of")
@pytest.mark.parametrize(("depth", "reason"), [(0, "first block not reached"), (1, "probe not reached")])
def test_a_pass_without_the_probed_block_runs_all_that_is_left(depth, reason):
    """Nobody decided that it skips, so nothing else may be left out."""
    tiny, tinier = make("DiT"), make("DiT")
    del tinier.model.transformer_blocks[depth]
    whole = tiny.model.transformer_blocks
    with apply_policy(tiny.model, Gate(depth=depth)) as handle:
        tiny()
        tiny.model.transformer_blocks = torch.nn.ModuleList(block for i, block in enumerate(whole) if i != depth)
        with pytest.warns(UserWarning, match=reason):
            output = tiny()
        assert torch.equal(output, tinier())
        tiny.model.transformer_blocks = whole
        assert handle.summary().contexts[0].mask == "FF"
        assert handle.summary().contexts[0].fail_opens == {reason: 1}


@pytest.mark.parametrize(
    ("kind", "depth", "site"),
    [("modulated", 0, "latent"), ("modulated", 2, "tail"), ("stream", 1, "hidden"), ("latent", 0, "output")],
)
def test_a_pass_that_becomes_full_runs_every_block_once(tiny_pipe, sample, kind, depth, site):
    """Same image, bit for bit, as with the same full steps fixed in advance; and the blocks are counted."""
    completed = []
    for block in tiny_pipe.transformer.transformer_blocks:
        block.ff.register_forward_hook(lambda *_: completed.append(1))
    images, counts, logs = [], [], []
    for gate in (
        Gate(late=(2, 5), site=site, kind=kind, depth=depth),
        Gate(early=(2, 5), site=site, kind=kind, depth=depth),
    ):
        per_step = []
        with apply_policy(tiny_pipe, gate) as handle:
            handle.listen(
                lambda event, per_step=per_step: (per_step.append((event.kind, len(completed))), completed.clear())
            )
            handle.listen(lambda event: logs.append(event.policy.log) if event.step == 7 else None)
            images.append(sample(steps=8))
        summary = handle.summary().contexts[0]
        assert summary.mask == "F.F..F.."
        assert summary.fail_opens == {}
        counts.append(per_step)
    assert torch.equal(images[0], images[1])
    assert counts[0] == counts[1] == [("full", 3) if step in (0, 2, 5) else ("skip", depth) for step in range(8)]
    assert logs[0] == logs[1] == [("full" if step in (0, 2, 5) else "skip", step) for step in range(8)]


def test_with_a_shadow_pass_too(tiny_pipe, sample):
    kinds = []
    with apply_policy(tiny_pipe, Gate(late=(3,), site="latent"), shadow=True) as handle:
        handle.listen(lambda event: kinds.append((event.kind, event.residual is not None, event.prediction is None)))
        shadowed = sample(steps=6)
    assert [kind for kind, *_ in kinds] == ["full", "shadow", "shadow", "full", "shadow", "shadow"]
    assert all(known for _, known, _ in kinds)
    assert [kind == "full" for kind, *_ in kinds] == [unpredicted for *_, unpredicted in kinds]
    with apply_policy(tiny_pipe, Gate(late=(3,), site="latent")):
        torch.testing.assert_close(sample(steps=6), shadowed, rtol=1e-5, atol=1e-5)


def test_deciding_without_a_probe_is_refused(tiny_pipe):
    policy = Gate()
    policy.needs_probe = False
    with pytest.raises(ValueError, match="Gate decides by the probe: it must set needs_probe"):
        apply_policy(tiny_pipe, policy)


# of every kind of layout one of them; `check` tries the other two sites on all classes
SITE_OF = dict.fromkeys([*KINDS, "AuraFlow"], "tail") | dict.fromkeys(["Flux", "HiDream", "Wan", "ZImage"], "output")


@pytest.mark.parametrize(("name", "site"), SITE_OF.items())
def test_the_true_value_at_a_site_gives_the_full_output(name, site):
    tiny = make(name)
    plain = tiny()
    (full, skip), events = steps(tiny, Replay(site=site))
    assert [event.kind for event in events] == ["full", "skip"]
    assert torch.equal(full, plain)
    assert relative_error(skip, plain) < 1e-6
    (_, turned), _ = steps(tiny, Replay(site=site, factor=-1))  # (the norm of the tail would undo a positive factor)
    assert relative_error(turned, plain) > 1e-2


def test_sites_differ_by_the_input(tiny_pipe, sample):
    found = {}
    for site in SITES:
        with apply_policy(tiny_pipe, Gate(site=site)) as handle:
            handle.listen(lambda event, site=site: found.setdefault(site, event.residual))
            sample(steps=2)
    starts, latents = [], []
    model = tiny_pipe.transformer
    model.transformer_blocks[0].register_forward_pre_hook(lambda _module, args: starts.append(args[0]))
    model.pos_embed.register_forward_pre_hook(lambda _module, args: latents.append(args[0]))
    sample(steps=2)
    torch.testing.assert_close(found["tail"] - found["hidden"], starts[0], rtol=1e-5, atol=1e-6)
    patches = torch.nn.functional.unfold(latents[0], 2, stride=2).mT  # (B, N, 4): one channel, patches row by row
    torch.testing.assert_close(found["output"] - found["latent"], patches, rtol=1e-5, atol=1e-6)
    probes = []
    with apply_policy(tiny_pipe, Gate(kind="latent")) as handle:
        handle.listen(lambda event: probes.append(event.probe))
        sample(steps=2)
    assert torch.equal(probes[0], patches)


# Where the image tokens start in the hidden state entering a block, where that is not 0.
FROM_THE_START = ("Lumina2", "Krea2", "FramePack", "Helios")
STARTS = {
    **{("Lumina2", index): [5, 3] for index in (1, 2)},
    **{("Krea2", index): [5, 5] for index in (1, 2)},
    **{(name, index): [9, 9] for name in ("FramePack", "Helios") for index in (1, 2)},  # earlier frames
    **{(name, index): [5, 5] for name in ("BriaFibo", "Chroma", "Flux2") for index in (2, 3)},
    **{("AuraFlow", index): [13, 13] for index in (2, 3)},
}


# every kind of layout, in the second stack of blocks where there is one
DEPTHS = {
    "CogVideoX": 1, "DiT": 2, "Flux": 3, "Flux2": 2, "FramePack": 1, "HiDream": 3, "Kandinsky5": 1, "Krea2": 2,
    "Lumina2": 2, "SD3": 1, "Wan": 1, "ZImage": 2, "AuraFlow": 3, "BriaFibo": 3, "Helios": 2, "HunyuanVideo": 3,
}  # fmt: skip


@pytest.mark.parametrize(("name", "depth"), [row for row in DEPTHS.items() if row[0] in CLASSES])
def test_stream_is_what_enters_the_blocks(name, depth):
    tiny = make(name)
    blocks = [block for block, _ in find_adapter(tiny.model).modules(tiny.model)[0]]
    entering = {}
    for index in (0, depth):
        blocks[index].register_forward_pre_hook(
            lambda _module, args, kwargs, index=index: entering.update(
                {index: args[0] if args else kwargs["hidden_states"]}
            ),
            with_kwargs=True,
        )
    policy = Replay()
    policy.probe_kind, policy.probe_depth = "stream", depth
    _, events = steps(tiny, policy, calls=2)
    assert [event.kind for event in events] == ["full", "skip"]
    for event in events:
        assert event.probe.shape[:3] == (2, 2, tiny.tokens)
        assert event.probes == {}, "recordings of modulated inputs must not take it for one"
        for part, index in zip(event.probe, (0, depth), strict=True):
            starts = STARTS.get((name, max(index, name in FROM_THE_START)), [0, 0])
            rows = [row[start:][: tiny.tokens] for row, start in zip(
                entering[index], starts, strict=True)]  # fmt: skip
            torch.testing.assert_close(part, torch.stack(rows), rtol=1e-5, atol=1e-6)  # patches may round otherwise


class Level(Replay):
    """Full when the probe's mean size is above a level."""

    decides_by_probe = True
    level = 0.0

    def wants_full_given(self, step, probe):
        return float(probe.abs().mean()) > self.level


def test_each_context_decides_for_itself():
    """Two guidance branches of one step; a level between the sizes of their probes lets one skip, not the other."""
    tiny = make("Wan")
    latents = {"one": tiny.inputs["hidden_states"], "two": tiny.inputs["hidden_states"].flip(0).abs()}
    sizes = {}
    with apply_policy(tiny.model, Replay()) as handle:
        handle.listen(lambda event: sizes.update({event.context: float(event.probe.abs().mean())}))
        for name, latent in latents.items():
            with handle.context(name):
                tiny(hidden_states=latent)
    policy = Level()
    policy.level = sum(sizes.values()) / 2
    with apply_policy(tiny.model, policy) as handle:
        for _ in range(3):
            for name, latent in latents.items():
                with handle.context(name):
                    tiny(hidden_states=latent)
    masks = {context.context: context.mask for context in handle.summary().contexts}
    assert masks == {name: "F.." if size == min(sizes.values()) else "FFF" for name, size in sizes.items()}


def test_in_compiled_blocks(tiny_pipe, sample):
    """The decision is taken in Python between two graphs, so not with fullgraph=True."""
    gate = Gate(late=(2, 5), kind="stream", depth=1)
    with apply_policy(tiny_pipe, gate.fresh()):
        plain = sample(steps=8)
    torch._dynamo.reset()
    for block in tiny_pipe.transformer.transformer_blocks:
        block.compile(backend="eager")
    with apply_policy(tiny_pipe, gate.fresh()) as handle:
        assert torch.equal(sample(steps=8), plain)
    assert handle.summary().contexts[0].mask == "F.F..F.."
