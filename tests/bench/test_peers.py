"""diffusers' caches, and cache-dit's, against the policies of the same name.

They must agree on the mask, and in float32 up to rounding on every output, wherever the peer runs at all: First-Block
Cache, MagCache and TaylorSeer's lite mode do in diffusers 0.42. TaylorSeer proper caches modules inside the blocks, so
no policy here is its equal: only its schedule is compared. On a device in bfloat16 masks may differ, because diffusers
decides in the model's dtype and the policies in float32.
"""

import copy

import pytest
import torch
from diffusers.hooks import FasterCacheConfig

from tapstudy import apply_policy, apply_tap
from tapstudy.bench.speed import third_party as peers
from tapstudy.policies.diffusers_taylor import DiffusersTaylorPolicy
from tapstudy.policies.first_block import FirstBlockPolicy
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.magcache import MagCachePolicy, magnitude_ratios
from tests.instrument.replay import relative_error
from tests.instrument.tiny_models import make
from tests.table import each_row

STEPS = 12
RATIOS = (1.0, 1.2, 1.1, 1.05, 0.97, 0.96, 1.02, 0.9, 0.93, 0.97, 1.1, 0.95)
THRESHOLDS = {"CogVideoX": 0.2, "DiT": 0.2, "Flux": 0.35}
MAG = {"num_steps": STEPS, "threshold": 0.2}


def run(tiny, steps=STEPS):
    return [tiny(**tiny.at(step, steps)) for step in range(steps)]


def compare(tiny, peer_cache, policy):
    """The masks of the peer and of the policy; their outputs must agree, and the model be itself again."""
    before = [tiny(**tiny.at(step, STEPS)) for step in (0, 5)]
    with peer_cache as peer:
        theirs = run(tiny)
        mask = peer.mask
        assert all(torch.equal(a, b) for a, b in zip(run(tiny), theirs, strict=True)), "a new run starts afresh"
    assert all(torch.equal(tiny(**tiny.at(step, STEPS)), out) for step, out in zip((0, 5), before, strict=True))
    with apply_policy(tiny.model, policy) as handle:
        ours = run(tiny)
    for mine, their in zip(ours, theirs, strict=True):
        assert relative_error(mine, their) < 1e-6
    return mask, handle.summary().contexts[0].mask


@pytest.mark.parametrize("name", ["CogVideoX", "DiT", "Flux"])
def test_first_block_cache(name):
    tiny, threshold = make(name), THRESHOLDS[name]
    theirs, ours = compare(tiny, peers.first_block_cache(tiny.model, threshold), FirstBlockPolicy(threshold))
    assert ours == theirs
    assert 1 < theirs.count("F") < STEPS


@pytest.mark.parametrize("name", ["DiT", "Flux", "SD3"])
def test_mag_cache(name):
    tiny = make(name)
    theirs, ours = compare(
        tiny, peers.mag_cache(tiny.model, RATIOS, **MAG), MagCachePolicy(RATIOS, threshold=MAG["threshold"])
    )
    assert ours == theirs == "FF.F...F...F"


@pytest.mark.parametrize(("name", "order"), [("Flux", 1), ("Wan", 2)])
def test_taylorseer_lite(name, order):
    tiny = make(name)
    theirs, ours = compare(
        tiny, peers.taylorseer_cache(tiny.model, lite=True, order=order), DiffusersTaylorPolicy(order)
    )
    assert ours == theirs == "FFF.F....F.."


@pytest.mark.parametrize("name", ["Flux", "SD3"])
def test_taylorseer_proper_shares_the_schedule_only(name):
    tiny = make(name)
    with peers.taylorseer_cache(tiny.model) as peer:
        theirs = run(tiny)
    assert peer.mask == "FFF.F....F.."
    with apply_policy(tiny.model, DiffusersTaylorPolicy(residual="tail")) as handle:
        ours = run(tiny)
    assert handle.summary().contexts[0].mask == peer.mask
    assert relative_error(ours[3], theirs[3]) > 1e-4


@each_row(
    ("cache", "names", "error"),
    [
        (peers.first_block_cache, ["Lumina2", "Sana"], ValueError),
        (peers.first_block_cache, ["Flux2", "SD3"], TypeError),
        (peers.first_block_cache, ["ZImage"], ValueError),
        (lambda model: peers.mag_cache(model, RATIOS, **MAG), ["Lumina2", "Sana"], ValueError),
        # which one depends on whether diffusers has looked at the block's signature before
        (lambda model: peers.mag_cache(model, RATIOS, **MAG), ["ZImage"], (KeyError, ValueError)),
        (lambda model: peers.taylorseer_cache(model, lite=True), ["DiT", "Lumina2", "ZImage"], ValueError),
        (lambda model: peers.taylorseer_cache(model, lite=True), ["SD3"], AttributeError),
        (peers.taylorseer_cache, ["CogVideoX", "DiT", "LTX", "PixArt", "Sana", "Wan", "ZImage"], ValueError),
    ],
)
def test_what_diffusers_cannot_do(cache, names, error):
    """The table in the module's docstring; and a failed attempt leaves the model as it was."""
    for name in names:
        tiny = make(name)
        plain = tiny()
        with pytest.raises(error), cache(tiny.model):
            run(tiny)
        assert torch.equal(tiny(), plain)
        with apply_tap(tiny.model):
            assert torch.equal(tiny(), plain)


def test_calibration_agrees(capsys):
    """Ratios from recorded residuals are those that diffusers prints."""
    from diffusers.hooks import MagCacheConfig

    tiny, residuals = make("Flux"), []
    with apply_policy(tiny.model, FullPolicy()) as handle:
        handle.listen(lambda event: residuals.append(event.residual.clone()))
        run(tiny)
    with peers.diffusers_cache(tiny.model, MagCacheConfig(num_inference_steps=STEPS, calibrate=True)):
        run(tiny)
    printed = capsys.readouterr().out.split("[")[-1].split("]")[0]
    assert magnitude_ratios(residuals) == pytest.approx([float(x) for x in printed.split(",")], rel=1e-5)


def test_on_a_pipeline_run_after_run(tiny_pipe, sample):
    """The embedded model's class sets no cache context and is never reset by diffusers."""
    plain = sample()
    with peers.first_block_cache(tiny_pipe, 0.3) as peer:
        first = sample()
        assert torch.equal(sample(), first)
        assert len(peer.mask) == 20
        sample((1, 2, 3), steps=7)
        assert len(peer.mask) == 7
        assert torch.equal(sample(), first)
    assert "." in peer.mask
    assert torch.equal(sample(), plain)
    with apply_policy(tiny_pipe, FirstBlockPolicy(0.3)) as handle:
        torch.testing.assert_close(sample(), first, rtol=1e-4, atol=1e-5)
    assert handle.summary().contexts[0].mask == peer.mask


def test_refusals(tiny_pipe):
    with pytest.raises(TypeError, match="needs one of"), peers.diffusers_cache(tiny_pipe, FasterCacheConfig()):
        pass
    with (
        apply_tap(tiny_pipe),
        pytest.raises(RuntimeError, match="already runs under a policy"),
        peers.first_block_cache(tiny_pipe),
    ):
        pass
    with peers.first_block_cache(tiny_pipe), pytest.raises(RuntimeError, match="call disable_cache"):
        apply_tap(tiny_pipe)


@pytest.mark.filterwarnings("ignore")
def test_dbcache(tiny_pipe, sample):
    """With one block ahead and no calibrator it is First-Block Cache with a warm-up; with one it is something else."""
    pytest.importorskip("cache_dit")
    model = tiny_pipe.transformer
    plain, keys, kept = sample(), list(model.state_dict()), {m: set(vars(m)) for m in model.modules()}
    settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 3, "residual_diff_threshold": 0.3}
    images = {}
    for order in (None, 1):
        with peers.dbcache(tiny_pipe, taylor_order=order, **copy.copy(settings)) as peer:
            images[order] = sample()
            assert torch.equal(sample(), images[order])
        assert peer.mask == "FFF........F........"
        assert torch.equal(sample(), plain)
        assert list(model.state_dict()) == keys
        assert {m: set(vars(m)) for m in model.modules()} == kept
    with apply_policy(tiny_pipe, FirstBlockPolicy(0.3, warmup_steps=3)) as handle:
        ours = sample()
    assert handle.summary().contexts[0].mask == peer.mask
    torch.testing.assert_close(ours, images[None], rtol=1e-4, atol=1e-5)
    assert (images[1] - ours).norm() > 1e-3 * ours.norm()
