"""TeaCache, First-Block Cache, MagCache, DiCache, CG-Taylor and ZEUS against their formulas, with numbers by hand."""

from types import SimpleNamespace

import pytest
import torch
from diffusers.hooks import MagCacheConfig
from diffusers.hooks.hooks import StateManager
from diffusers.hooks.mag_cache import MagCacheHeadHook, MagCacheState
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tapstudy.core.change import relative_change
from tapstudy.core.schedule import Schedule, mask_text
from tapstudy.policies.base import RunInfo
from tapstudy.policies.cg_taylor import CGTaylorPolicy
from tapstudy.policies.dicache import DiCachePolicy
from tapstudy.policies.diffusers_taylor import DiffusersTaylorPolicy
from tapstudy.policies.first_block import FirstBlockPolicy
from tapstudy.policies.magcache import MagCachePolicy, magnitude_ratios, magnitude_skips, resampled
from tapstudy.policies.teacache import FLUX_COEFFICIENTS, TeaCachePolicy, rescaling_coefficients
from tapstudy.policies.zeus import ZeusPolicy, zeus_skips
from tests.policies.loop import drive, tokens
from tests.table import each_row


def mask_of(policy, num_steps):
    """The mask of a policy that needs no probe, on made-up residuals."""
    return drive(policy, [None] * num_steps, [tokens(float(i)) for i in range(num_steps)], num_steps=num_steps)[0]


def test_relative_change_by_hand():
    assert relative_change(tokens(1.0, -4.0), tokens(2.0, -2.0)) == pytest.approx(3 / 4)
    assert relative_change(tokens(0.0), tokens(0.0)) == 0
    assert relative_change(tokens(1.0), tokens(0.0)) == float("inf")
    # summed in float32 at least: 4096 halves of bfloat16 would stop growing at 256
    ones = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    assert relative_change(1.5 * ones, ones) == 0.5


# TeaCache

PROBES = [tokens(value) for value in (100.0, 110.0, 121.0, 133.1, 146.41, 161.051)]  # each changes by a tenth


def test_teacache_adds_up_changes_between_neighbours():
    """And runs the last step in full where it is known."""
    residuals = [tokens(float(i)) for i in range(6)]
    for threshold, mask in ((0.05, "FFFFFF"), (0.15, "F.F.F."), (0.25, "F..F.."), (0.35, "F...F."), (9, "F.....")):
        found, predictions = drive(TeaCachePolicy(threshold), PROBES, residuals)
        assert found == mask
        for step, prediction in predictions.items():
            assert torch.equal(prediction.residual.double(), residuals[mask[:step].rindex("F")])
    assert drive(TeaCachePolicy(9), PROBES, residuals, num_steps=6)[0] == "F....F"


def test_teacache_rescales_each_change():
    """p(x) = 100 x^2 - 0.5 at a tenth is 0.5; 1 after two steps."""
    residuals = [tokens(0.0)] * 6
    policy = TeaCachePolicy(0.9, coefficients=(100.0, 0.0, -0.5))
    assert drive(policy, PROBES, residuals)[0] == "F.F.F."
    assert drive(TeaCachePolicy(1.1, coefficients=(100.0, 0.0, -0.5)), PROBES, residuals)[0] == "F..F.."
    flux = TeaCachePolicy(0.25, coefficients=FLUX_COEFFICIENTS)
    flux.begin(RunInfo())
    flux.observe(0, PROBES[0], tokens(0.0))
    by_hand = 498.651651e-4 - 283.781631e-3 + 55.8554382e-2 - 3.82021401e-1 + 0.264230861
    assert flux.total_with(PROBES[1]) == pytest.approx(by_hand, rel=1e-6)


def test_rescaling_recovers_the_polynomial():
    inputs = torch.linspace(0.01, 0.4, 60, dtype=torch.float64).view(3, 20)
    powers = inputs[..., None] ** torch.arange(4, -1, -1)
    outputs = (powers * torch.tensor(FLUX_COEFFICIENTS, dtype=torch.float64)).sum(dim=-1)
    assert rescaling_coefficients(inputs, outputs) == pytest.approx(FLUX_COEFFICIENTS, rel=1e-6)
    with pytest.raises(ValueError, match="degree 4 needs more than 4 pairs"):
        rescaling_coefficients(inputs[0, :4], outputs[0, :4])


# First-Block Cache


def streams(starts, firsts):
    """Probes of the kind `stream`: (2, 1, 1, 1) each."""
    return [torch.stack([tokens(x), tokens(y)]) for x, y in zip(starts, firsts, strict=True)]


def test_first_block_compares_with_the_last_full_step():
    """First-block residuals 10, 11, 12, 13, 14 against 10, then 13: a tenth, two, three (full), one thirteenth."""
    starts, firsts = (1.0, 2.0, 3.0, 4.0, 5.0), (11.0, 13.0, 15.0, 17.0, 19.0)
    residuals = [tokens(100.0 + i) for i in range(5)]
    mask, predictions = drive(FirstBlockPolicy(0.25), streams(starts, firsts), residuals)
    assert mask == "F..F."
    # what the other blocks added at step 0 is 100 - 10, at step 3 it is 103 - 13
    assert {step: p.residual.item() for step, p in predictions.items()} == {1: 101, 2: 102, 4: 104}
    assert drive(FirstBlockPolicy(0.09), streams(starts, firsts), residuals)[0] == "FFF.F"  # 1/12 is below 0.09
    assert drive(FirstBlockPolicy(9, warmup_steps=3), streams(starts, firsts), residuals)[0] == "FFF.."


# MagCache


def test_magcache_by_hand():
    """Ratios 0.9: |1 - 0.9| = 0.1, |1 - 0.81| = 0.19, |1 - 0.729| = 0.271; sums 0.1, 0.29, 0.561."""
    ratios = [1.0] + [0.9] * 9
    for threshold, mask in ((0.05, "FFFFFFFFFF"), (0.2, "FFF.F.F.F."), (0.3, "FF..F..F.."), (0.6, "FF...F...F")):
        policy = MagCachePolicy(ratios, threshold=threshold, max_skips=9, retention=0.2 if threshold > 0.2 else 0.3)
        assert mask_of(policy, 10) == mask
    assert mask_of(MagCachePolicy(ratios, threshold=9, max_skips=2, retention=0.2), 10) == "FF..F..F.."


def diffusers_mask(ratios, steps, **options):
    """The mask that diffusers' own hook makes, on a block that gives back what it gets."""
    hidden = torch.zeros(1, 1, 1)
    manager = StateManager(MagCacheState)
    manager.set_context(SimpleNamespace(name="only"))
    hook = MagCacheHeadHook(manager, MagCacheConfig(num_inference_steps=steps, mag_ratios=ratios, **options))
    hook.fn_ref = SimpleNamespace(original_forward=lambda hidden_states: hidden_states)
    hook._metadata = SimpleNamespace(
        hidden_states_argument_name="hidden_states",
        return_encoder_hidden_states_index=None,
        _get_parameter_from_args_kwargs=lambda name, args, kwargs: kwargs[name],
    )
    mask, state = "", manager.get_state()
    for _ in range(steps):
        hook.new_forward(None, hidden_states=hidden)
        mask += "F" if state.should_compute else "."
        state.previous_residual = hidden
        state.step_index += 1
    return mask


# curves on a grid of hundredths: the sums meet the threshold again and again
@settings(max_examples=60)
@given(
    ratios=st.lists(st.sampled_from([0.9, 0.97, 0.98, 0.99, 1.0, 1.01, 1.02, 1.03]), min_size=2, max_size=20),
    threshold=st.sampled_from([0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.1, 0.12]),
    max_skips=st.integers(1, 5),
    retention=st.sampled_from([0.0, 0.1, 0.2, 0.25, 0.3, 0.5]),
    steps=st.integers(1, 40),
)
@example(ratios=[1.0, 0.98], threshold=0.02, max_skips=1, retention=0.0, steps=2)
def test_magcache_decides_ties_as_diffusers(ratios, threshold, max_skips, retention, steps):
    policy = MagCachePolicy(ratios, threshold=threshold, max_skips=max_skips, retention=retention)
    expected = diffusers_mask(ratios, steps, threshold=threshold, max_skip_steps=max_skips, retention_ratio=retention)
    policy.begin(RunInfo(steps))
    assert "".join("F" if policy.wants_full(step) else "." for step in range(steps)) == expected


def test_magcache_rounds_the_retention_and_resamples_the_curve():
    assert min(magnitude_skips([1.0] * 28, 1, max_skips=3, retention=0.2)) == int(28 * 0.2 + 0.5) == 6
    assert min(magnitude_skips([1.0] * 28, 1, max_skips=3, retention=0.0)) == 1, "nothing to reuse at step 0"
    assert resampled((1.0, 2.0, 3.0), 5) == (1.0, 1.0, 2.0, 3.0, 3.0)  # 0, 0.5, 1, 1.5, 2: halves to even
    assert resampled((1.0, 2.0, 3.0), 1) == (3.0,)


def test_magnitude_ratios_by_hand():
    """Tokens of norm 5 and 1, then 10 and 3: ratios 2 and 3."""
    before = torch.tensor([[[3.0, 4.0], [1.0, 0.0]]])
    after = torch.tensor([[[6.0, 8.0], [0.0, 3.0]]])
    assert magnitude_ratios(iter([before, after, after])) == pytest.approx((1.0, 2.5, 1.0), rel=1e-6)


# DiCache


def test_dicache_decides_by_its_neighbour_and_moves_along_the_line():
    """y = 100, 110, 121, ...: a tenth per step; P at the full steps 0 and 2 is 10 and 30, residuals 1 and 3."""
    starts = (90.0, 95.0, 91.0, 88.1, 80.41, 70.0)
    firsts = (100.0, 110.0, 121.0, 133.1, 146.41, 161.051)
    residuals = [tokens(1.0 + i) for i in range(6)]
    policy = DiCachePolicy(0.15, retention=0, max_gamma=9)
    mask, predictions = drive(policy, streams(starts, firsts), residuals)
    assert mask == "F.F.F."
    assert predictions[1].residual.item() == 1  # one full step so far
    gamma = (133.1 - 88.1 - 10) / (30 - 10)
    assert predictions[3].residual.item() == pytest.approx(1 + gamma * (3 - 1))
    clipped = drive(DiCachePolicy(0.15, retention=0), streams(starts, firsts), residuals)[1]
    assert clipped[3].residual.item() == pytest.approx(1 + 1.5 * (3 - 1))


def test_dicache_difference_subtracts_the_change_of_the_input():
    """x and y both grow by a tenth: no difference; then y alone does."""
    starts, firsts = (10.0, 11.0, 12.1, 12.1, 12.1), (100.0, 110.0, 121.0, 133.1, 146.41)
    residuals = [tokens(0.0)] * 5
    policy = DiCachePolicy(0.05, retention=0, error="difference")
    assert drive(policy, streams(starts, firsts), residuals)[0] == "F..FF"


def test_dicache_keeps_the_first_part_and_the_last_step():
    still = streams((1.0,) * 10, (2.0,) * 10)
    assert drive(DiCachePolicy(1, retention=0.25), still, [tokens(0.0)] * 10, num_steps=10)[0] == "FFF......F"


# CG-Taylor


def test_cg_taylor_trusts_a_good_forecast():
    """The first block's output is a line until step 6, then bends; the tail is a parabola."""
    firsts = [10.0 + i for i in range(6)] + [20.0, 21.0]
    probes = streams((0.0,) * 8, firsts)
    tails = [tokens(float(i * i)) for i in range(8)]
    policy = CGTaylorPolicy(0.01, order=2, always_full=3)
    mask, predictions = drive(policy, probes, tails, num_steps=9)
    assert mask == "FFFF..FF"
    # D1 = 9 - 4 = 5, D2 = (5 - 3) = 2 at step 3, so 9 + 5 k + k^2
    assert {step: p.residual.item() for step, p in predictions.items()} == {4: 15, 5: 23}
    assert drive(CGTaylorPolicy(0.5, always_full=3), probes, tails, num_steps=8)[0] == "FFFF...F"


# ZEUS


def test_zeus_full_steps_of_its_flux_demo():
    """T = 50: 27 full steps, with and without the sparse phase."""
    demo = {"denominator": 3, "modular": (0, 1), "start": 10, "end": 45, "max_skips": 4}
    skips = zeus_skips(**demo, sparse_from=24)
    fulls = [*range(11), 12, 15, 18, 21, 24, 25, 30, 31, 36, 37, 42, 43, 46, 47, 48, 49]
    assert [step for step in range(50) if step not in skips] == fulls
    dense = zeus_skips(**demo)
    assert [step for step in range(50) if step not in dense] == [*range(11), *range(12, 46, 3), 46, 47, 48, 49]
    assert len(fulls) == 50 - len(dense) == 27
    library = mask_of(ZeusPolicy(), 50)
    assert library == "F" * 12 + ".F" * 18 + "FF", "every other step, from 12 to 46"


def test_zeus_predictions_by_hand():
    """Outputs 1 at step 0 and 4 at step 3: 2 * 4 - 1 = 7; per step of the gap, 4 + 1 = 5."""
    for options, expected in (
        ({}, [7, 4, 7, 4]),
        ({"mode": "extrapolate"}, [7] * 4),
        ({"mode": "reuse"}, [4] * 4),
        ({"gap_normalise": True}, [5, 4, 5, 4]),
    ):
        policy = ZeusPolicy(**options)
        policy.observe(0, None, tokens(1.0))
        policy.observe(3, None, tokens(4.0))
        assert [policy.predict(step, None).residual.item() for step in (4, 5, 6, 7)] == expected


@each_row(
    ("make", "message"),
    [
        (lambda: TeaCachePolicy(threshold=-1), "threshold must be at least 0 and coefficients not empty"),
        (lambda: TeaCachePolicy(coefficients=()), "threshold must be at least 0 and coefficients not empty"),
        (lambda: FirstBlockPolicy(-0.1), "threshold must be at least 0"),
        (lambda: MagCachePolicy(()), "no ratios"),
        (lambda: DiCachePolicy(error="delta"), "error must be one of"),
        (lambda: DiCachePolicy(depth=0), "depth at least 1"),
        (lambda: ZeusPolicy(start=1), "start at least 2"),
        (lambda: ZeusPolicy(mode="x_0"), "mode must be one of"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# TaylorSeer as in diffusers


def test_phase_of_diffusers_taylorseer():
    mask = mask_of(DiffusersTaylorPolicy(), 50)
    fulls = [0, 1, 2, 4, 9, 14, 19, 24, 29, 34, 39, 44, 49]
    assert mask == mask_text(fulls, 50)
    assert mask.startswith("FFF.F....F....F")
    assert mask != mask_text(Schedule(5, 3).steps(50), 50)
    assert mask_of(DiffusersTaylorPolicy(after=12), 15) == "FFF.F....F..FFF"
