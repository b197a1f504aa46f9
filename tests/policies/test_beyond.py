"""Margin, smoothing, blending, ridge, adaptive windows: in the limit TAP or a fixed predictor, the rest by hand."""

import math

import numpy as np
import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.core.scoring import predictor_losses
from tapstudy.policies.adaptive import AdaptiveTAPPolicy, best_loss
from tapstudy.policies.base import RunInfo
from tapstudy.policies.blended import BlendedPolicy, blend_shares
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.margin import MarginPolicy
from tapstudy.policies.ridge import RidgePolicy, ridge_rows
from tapstudy.policies.smoothed import SmoothedPolicy
from tapstudy.policies.tap import TAPPolicy
from tests.policies.loop import drive, tokens
from tests.table import each_row

CONFIG = TAPConfig(interval=5, history_dtype=torch.float64)


@pytest.fixture
def run():
    """Probes and residuals of a made-up run: (2, 6, 8) and (2, 6, 3) at each of 14 steps, smooth but for some noise."""
    generator = torch.Generator().manual_seed(1)

    def path(width):
        curve = [torch.randn(2, 6, width, generator=generator, dtype=torch.float64) for _ in range(4)]
        noise = [0.02 * torch.randn(2, 6, width, generator=generator, dtype=torch.float64) for _ in range(14)]
        return [
            curve[0] + t * curve[1] + t**2 * curve[2] + t**3 * curve[3] + noise[step]
            for step, t in enumerate(torch.linspace(0, 1.5, 14, dtype=torch.float64))
        ]

    return path(8), path(3)


def assert_same(predictions, expected):
    assert list(predictions) == list(expected)
    for step, prediction in predictions.items():
        torch.testing.assert_close(prediction.residual, expected[step].residual, rtol=1e-9, atol=1e-12)


# Margin


def test_margin_of_one_is_tap_and_of_zero_the_default(run):
    _, tap = drive(TAPPolicy(CONFIG), *run)
    assert_same(drive(MarginPolicy(CONFIG, factor=1), *run)[1], tap)
    _, fixed = drive(FixedPolicy(2, 1, config=CONFIG), *run)
    assert_same(drive(MarginPolicy(CONFIG, default=(2, 1), factor=0), *run)[1], fixed)


def test_margin_leaves_the_default_only_for_a_clear_win(run):
    """Against a loop over tokens."""
    policy = MarginPolicy(CONFIG, factor=0.7)
    members = [(label.order, label.shift) for label in policy.labels]
    default, left = members.index((1, 0)), 0
    for prediction in drive(policy, *run)[1].values():
        for losses, choice in zip(
            prediction.proxy_loss.flatten(0, 1).tolist(), prediction.choice.flatten().tolist(), strict=True
        ):
            best = min(range(len(losses)), key=losses.__getitem__)
            expected = best if losses[best] < 0.7 * losses[default] else default
            assert choice == expected
            left += choice != default
    assert 0 < left < 2 * 6 * 9


def test_margin_ties_stay_with_the_default():
    """Constant features: every predictor is exact."""
    constant = [tokens(1.0, 2.0)] * 8
    _, predictions = drive(MarginPolicy(CONFIG, default=(2, 0), factor=1), constant, constant)
    names = {str(TAPConfig().family.labels[p.choice.item()]) for p in predictions.values()}
    assert names == {"m=2 s=0"}


# Smoothing


def test_without_memory_smoothing_is_tap(run):
    assert_same(drive(SmoothedPolicy(CONFIG, decay=0), *run)[1], drive(TAPPolicy(CONFIG), *run)[1])


@each_row("decay", [0.5, 1.0])
def test_smoothing_adds_up_the_window(run, decay):
    """The choice is the argmin of the decayed sum since the last full step, label by label."""
    mask, predictions = drive(SmoothedPolicy(CONFIG, decay=decay), *run)
    losses = {step: p.proxy_loss for step, p in drive(TAPPolicy(CONFIG), *run)[1].items()}
    differs = 0
    for step, prediction in predictions.items():
        start = mask[:step].rindex("F") + 1
        total = sum(decay ** (step - past) * losses[past] for past in range(start, step + 1))  # (B, N, P)
        same = total.gather(-1, prediction.choice[..., None]) == total.amin(dim=-1, keepdim=True)
        # members that coincide at this step share the first one's name; their sums may differ
        coincide = losses[step].gather(-1, prediction.choice[..., None]) == losses[step].gather(
            -1, total.argmin(dim=-1, keepdim=True)
        )
        assert (same | coincide).all()
        torch.testing.assert_close(prediction.proxy_loss, losses[step])
        differs += int((prediction.choice != losses[step].argmin(dim=-1)).sum())
    assert differs > 0


# Blending


def test_shares_by_hand():
    losses = torch.tensor([[1.0, 2.0, 4.0]], dtype=torch.float64)
    torch.testing.assert_close(blend_shares(losses, 1), torch.tensor([[4, 2, 1]], dtype=torch.float64) / 7)
    torch.testing.assert_close(blend_shares(1e-9 * losses, 2), torch.tensor([[16, 4, 1]], dtype=torch.float64) / 21)
    torch.testing.assert_close(blend_shares(losses, 0), torch.full((1, 3), 1 / 3, dtype=torch.float64))
    odd = torch.tensor([[0.0, 1.0, math.nan], [math.nan, 2.0, math.nan]], dtype=torch.float64)
    torch.testing.assert_close(blend_shares(odd, 2), torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64))


def test_a_sharp_blend_is_tap(run):
    assert_same(drive(BlendedPolicy(CONFIG, power=1e5), *run)[1], drive(TAPPolicy(CONFIG), *run)[1])


def test_a_blend_is_the_average_of_the_predictions(run):
    _, blended = drive(BlendedPolicy(CONFIG, power=2), *run)
    distinct = {}
    for order, shift in [(0, 0), *((order, shift) for order in (1, 2) for shift in range(5))]:
        for step, prediction in drive(FixedPolicy(order, shift, config=CONFIG), *run)[1].items():
            distinct.setdefault(step, {})[order, shift] = prediction.residual
    labels = [(label.order, label.shift) for label in CONFIG.family.labels]
    for step, prediction in blended.items():
        k = 1 + (step - 3) % 5
        members = [(0, 0), *((order, shift) for order in (1, 2) for shift in range(5) if shift != k)]
        shares = [prediction.proxy_loss[..., labels.index(member)] ** -2 for member in members]
        expected = sum(s[..., None] * distinct[step][m] for s, m in zip(shares, members, strict=True))
        expected = expected / sum(shares)[..., None]
        torch.testing.assert_close(prediction.residual, expected, rtol=1e-8, atol=1e-10)


# Ridge


def test_ridge_rows_against_numpy():
    """Least squares with the penalty written as extra equations, token by token."""
    generator = torch.Generator().manual_seed(2)
    anchors = [torch.randn(2, 3, 10, generator=generator, dtype=torch.float64) for _ in range(3)]
    actual = torch.randn(2, 3, 10, generator=generator, dtype=torch.float64)
    default = torch.tensor([1.5, -0.5, 0.0], dtype=torch.float64)
    rows = ridge_rows(anchors, actual, default, strength=0.3)
    for b in range(2):
        for n in range(3):
            newest, *older = (anchor[b, n].numpy() for anchor in anchors)
            spread = np.stack([anchor - newest for anchor in older], axis=1)  # (D, 2)
            error = actual[b, n].numpy() - np.stack([newest, *older], axis=1) @ default.numpy()
            size = (spread**2).sum(axis=0).mean()
            system = np.concatenate([spread, math.sqrt(0.3 * size) * np.eye(2)])
            delta = np.linalg.lstsq(system, np.concatenate([error, np.zeros(2)]))[0]
            expected = default.numpy() + [-delta.sum(), *delta]
            np.testing.assert_allclose(rows[b, n].numpy(), expected, rtol=1e-10, atol=1e-12)


def test_ridge_limits(run):
    _, fixed = drive(FixedPolicy(1, config=CONFIG), *run)
    assert_same(drive(RidgePolicy(CONFIG, strength=1e15), *run)[1], fixed)
    # a token's probe that is a combination of the anchors hands its coefficients to the residual
    anchors = [tokens(1.0, 0.0, 2.0), tokens(0.0, 1.0, 5.0), tokens(3.0, 1.0, 0.0)]
    actual = 0.2 * anchors[0] + 0.5 * anchors[1] + 0.3 * anchors[2]
    rows = ridge_rows(anchors, actual, torch.tensor([1.0, 0.0, 0.0]), strength=1e-12)
    torch.testing.assert_close(rows, tokens(0.2, 0.5, 0.3), rtol=1e-8, atol=1e-9)


def test_ridge_without_spread_is_the_default():
    constant = [tokens(1.0, 2.0)] * 8
    for prediction in drive(RidgePolicy(CONFIG), constant, constant)[1].values():
        torch.testing.assert_close(prediction.residual, tokens(1.0, 2.0))


# Adaptive windows


def test_without_a_threshold_the_windows_are_tap_s(run):
    mask, predictions = drive(AdaptiveTAPPolicy(math.inf, CONFIG), *run)
    tap_mask, tap = drive(TAPPolicy(CONFIG), *run)
    assert mask == tap_mask == "FFF....F....F."
    assert_same(predictions, tap)


@each_row("share", [0.2, 0.7])
def test_a_window_ends_when_the_best_losses_add_up(run, share):
    """Against a loop that scores every step from the anchors the mask implies."""
    config = TAPConfig(interval=9, distance="l2", history_dtype=torch.float64)
    probes, residuals = run
    _, open_ended = drive(AdaptiveTAPPolicy(math.inf, config), probes, residuals)
    threshold = share * sum(float(best_loss(p.proxy_loss)) for step, p in open_ended.items() if step < 11)
    mask, _ = drive(AdaptiveTAPPolicy(threshold, config), probes, residuals)
    expected, anchors, total = "FFF", [2, 1, 0], 0.0
    for step in range(3, 14):
        weights = torch.tensor(config.family.rows(anchors, step), dtype=torch.float64)
        losses = predictor_losses([probes[a] for a in anchors], probes[step], weights, distance="l2")
        total += sum(min(token) for sample in losses.tolist() for token in sample) / 12
        if total > threshold or step - anchors[0] == 9:
            expected, anchors, total = expected + "F", [step, *anchors[:2]], 0.0
        else:
            expected += "."
    assert mask == expected
    assert "." in mask[3:]
    assert mask != "FFF........F.."


def test_adaptive_windows_on_a_model(tiny_pipe, sample):
    """Threshold 0 never skips; a generous one skips, and a batch decides together."""
    plain = sample()
    with apply_policy(tiny_pipe, AdaptiveTAPPolicy(0.0)) as handle:
        assert torch.equal(sample(), plain)
    assert handle.summary().contexts[0].mask == "F" * 20
    with apply_policy(tiny_pipe, AdaptiveTAPPolicy(0.6, TAPConfig(distance="l2", cooldown_steps=2))) as handle:
        sample()
    summary = handle.summary().contexts[0]
    assert summary.mask.startswith("FFF.")
    assert summary.mask.endswith("FF")
    assert summary.num_full > 6
    assert summary.fail_opens == {}


@each_row(
    ("make", "message"),
    [
        (lambda: MarginPolicy(default=(3, 0)), "no predictor of order 3 and shift 0"),
        (lambda: MarginPolicy(factor=1.5), "factor must lie in"),
        (lambda: SmoothedPolicy(decay=1.1), "decay must lie in"),
        (lambda: BlendedPolicy(power=-1), "power must be at least 0"),
        (lambda: BlendedPolicy(TAPConfig(granularity="step")), "weighs per token"),
        (lambda: RidgePolicy(strength=0), "strength must be above 0"),
        (lambda: RidgePolicy(default=(2, 0), num_anchors=2), r"num_anchors at least order \+ 1 = 3"),
        (lambda: AdaptiveTAPPolicy(-1), "threshold must be at least 0"),
        (lambda: AdaptiveTAPPolicy(1, TAPConfig(full_steps=(0, 1, 2))), "leave full_steps out"),
    ],
)
def test_settings_that_cannot_be_meant(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_copies_for_other_contexts_start_empty(run):
    for policy in (SmoothedPolicy(CONFIG), AdaptiveTAPPolicy(1e-3, CONFIG), RidgePolicy(CONFIG)):
        first = drive(policy.fresh(), *run)
        again = policy.fresh()
        drive(again, *run)
        again.begin(RunInfo())
        second = drive(again, *run)
        assert first[0] == second[0]
        assert_same(second[1], first[1])
