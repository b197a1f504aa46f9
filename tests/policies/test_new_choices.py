"""Single members, calibrated rows, drift, two depths: identities with older policies, and loops over tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy import TAPConfig, apply_policy
from tapstudy.core.scoring import predictor_losses
from tapstudy.policies.calibrated import CalibratedPolicy, best_rows, fit_rows
from tapstudy.policies.drift import DriftPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.several_depths import SeveralDepthsPolicy
from tapstudy.policies.single import SinglePolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.taylor import TaylorFamily
from tests.policies.loop import drive

STEPS = 14
CONFIG = TAPConfig(interval=5, history_dtype=torch.float64)
FULL = (0, 1, 2, 7, 12)


def path(width, *, seed=1, tokens=6):
    generator = torch.Generator().manual_seed(seed)
    curve = [torch.randn(2, tokens, width, generator=generator, dtype=torch.float64) for _ in range(4)]
    noise = [0.02 * torch.randn(2, tokens, width, generator=generator, dtype=torch.float64) for _ in range(STEPS)]
    times = torch.linspace(0, 1.5, STEPS, dtype=torch.float64)
    return [sum(c * t**n for n, c in enumerate(curve)) + noise[i] for i, t in enumerate(times)]


def gram_of(features):
    flat = torch.stack(features).flatten(1)
    return flat @ flat.T


def same(one, other):
    assert one.keys() == other.keys()
    for step, prediction in one.items():
        torch.testing.assert_close(prediction.residual, other[step].residual, rtol=1e-9, atol=1e-12)


# One member


def test_a_single_taylor_member_is_the_fixed_policy():
    features = path(3)
    for member, label in enumerate(CONFIG.family.labels):
        mask, found = drive(SinglePolicy(CONFIG.family, CONFIG, member=member), [None] * STEPS, features)
        fixed_mask, fixed = drive(FixedPolicy(label.order, label.shift, config=CONFIG), [None] * STEPS, features)
        assert mask == fixed_mask
        same(found, fixed)
    with pytest.raises(ValueError, match="member must be below 15, got 15"):
        SinglePolicy(CONFIG.family, member=15)


# Calibrated rows


def test_fitted_rows_are_least_squares():
    features = path(3)
    rows = fit_rows(gram_of(features), FULL, num_anchors=3, ridge=0)
    assert set(rows) == set(range(STEPS)) - set(FULL)
    for step, row in rows.items():
        anchors = [at for at in reversed(FULL) if at < step][:3]
        design = np.stack([features[at].flatten().numpy() for at in anchors], axis=1)
        expected = np.linalg.lstsq(design, features[step].flatten().numpy(), rcond=None)[0]
        assert row == pytest.approx(expected, rel=1e-7)


def test_a_ridge_is_a_share_of_the_mean_square_of_the_anchors():
    features = path(3)
    for step, row in fit_rows(gram_of(features), FULL, num_anchors=3, ridge=0.1).items():
        anchors = [at for at in reversed(FULL) if at < step][:3]
        design = np.stack([features[at].flatten().numpy() for at in anchors], axis=1)
        penalty = 0.1 * (design**2).sum(axis=0).mean() * np.eye(len(anchors))
        right = design.T @ features[step].flatten().numpy() + penalty[:, 0]  # towards (1, 0, ..)
        assert row == pytest.approx(np.linalg.solve(design.T @ design + penalty, right), rel=1e-6)


def test_a_large_ridge_is_reuse():
    rows = fit_rows(gram_of(path(3)), FULL, ridge=1e12)
    assert all(row == pytest.approx((1.0, *(0 for _ in row[1:])), abs=1e-9) for row in rows.values())


def test_fitted_rows_also_minimise_the_sum_over_a_window():
    """No other rows bring the sum of the window's predictions closer to the sum of its truths."""
    features = path(3)
    rows = fit_rows(gram_of(features), FULL, ridge=0)
    window, anchors = range(8, 12), (7, 2, 1)
    flat = np.stack([feature.flatten().numpy() for feature in features])
    error = sum(np.array(rows[step]) @ flat[list(anchors)] - flat[step] for step in window)
    best = np.linalg.lstsq(flat[list(anchors)].T, flat[8:12].sum(axis=0), rcond=None)[1]
    assert error @ error == pytest.approx(float(best[0]), rel=1e-6)


def test_best_rows_against_a_loop():
    features, family = path(3), CONFIG.family
    rows = best_rows(gram_of(features), FULL, family)
    errors = {}
    for label in family.labels:
        for step, found in drive(FixedPolicy(label.order, label.shift, config=CONFIG), [None] * STEPS, features)[
            1
        ].items():
            errors.setdefault(step, []).append(float((found.residual - features[step]).square().sum()))
    _, table = drive(CalibratedPolicy(rows, CONFIG), [None] * STEPS, features)
    for step, found in table.items():
        assert float((found.residual - features[step]).square().sum()) == pytest.approx(min(errors[step]), rel=1e-9)


def test_rows_of_taylor_make_the_fixed_policy():
    features, family = path(3), TaylorFamily(orders=(2,), shifts=(1,))
    rows = best_rows(gram_of(features), FULL, family)  # there is nothing to choose
    mask, found = drive(CalibratedPolicy(rows, CONFIG), [None] * STEPS, features)
    fixed_mask, fixed = drive(FixedPolicy(2, 1, config=CONFIG), [None] * STEPS, features)
    assert mask == fixed_mask == "FFF....F....F."
    same(found, fixed)


def test_rows_and_fits_that_cannot_be_meant():
    for rows, message in (
        ({1: (1.0, 0.0)}, "step 1 has 1 full steps before it, but 2 weights"),
        ({0: (1.0,)}, "0 full steps"),
        ({2: ()}, "0 w"),
    ):
        with pytest.raises(ValueError, match=message):
            CalibratedPolicy(rows)
    for gram, full, options, message in (
        (torch.ones(3), (0,), {}, "finite square"),
        (torch.eye(3) * torch.nan, (0,), {}, "finite square"),
        (torch.eye(3), (1,), {}, "must hold 0"),
        (torch.eye(3), (0, 3), {}, r"lie in 0\.\.2"),
        (torch.eye(3), (0,), {"ridge": -1}, "ridge of at least 0"),
        (torch.eye(3), (0,), {"num_anchors": 0}, "num_anchors of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_rows(gram, full, **options)


def test_calibrated_rows_run_on_a_model(tiny_pipe, sample):
    rows = dict.fromkeys((1, 2, 4), (1.0,))
    with apply_policy(tiny_pipe, CalibratedPolicy(rows)) as handle:
        images = sample(steps=6)
    assert handle.summary().contexts[0].mask == "F..F.F"
    with apply_policy(tiny_pipe, FixedPolicy(0, config=TAPConfig(full_steps=(0, 3, 5)))):
        torch.testing.assert_close(sample(steps=6), images)


# Drift


@settings(max_examples=8)  # all alike
@given(st.integers(0, 50))
def test_drift_against_a_loop(seed):
    probes, residuals = path(5, seed=seed, tokens=3), path(2, seed=seed + 100, tokens=3)
    policy = DriftPolicy(CONFIG)
    _, found = drive(policy, probes, residuals)
    assert policy.total is not None
    total = torch.zeros_like(probes[0])
    for step, prediction in found.items():
        anchors = [at for at in reversed(FULL) if at < step][:3]
        if step - 1 in FULL:
            total = torch.zeros_like(total)
        rows = CONFIG.family.rows(anchors, step)
        for b, n in np.ndindex(2, 3):
            errors = [
                sum(w * probes[a][b, n] for w, a in zip(row, anchors, strict=False)) - probes[step][b, n]
                for row in rows
            ]
            sizes = torch.stack([(total[b, n] + error).norm() for error in errors])
            chosen = int(prediction.choice[b, n])
            assert sizes[chosen] <= sizes.min() * (1 + 1e-9)
            total[b, n] += errors[chosen]


def test_the_first_step_of_a_window_is_tap():
    probes, residuals = path(5), path(2)
    _, drift = drive(DriftPolicy(CONFIG), probes, residuals)
    _, tap = drive(TAPPolicy(TAPConfig(interval=5, distance="l2", history_dtype=torch.float64)), probes, residuals)
    for step in (3, 8, 13):
        assert torch.equal(drift[step].choice, tap[step].choice)
    assert any(not torch.equal(drift[step].choice, tap[step].choice) for step in drift)
    with pytest.raises(ValueError, match="relative L2 norm"):
        DriftPolicy(TAPConfig(distance="l1"))


def test_drift_counts_what_it_holds():
    policy = DriftPolicy(CONFIG)
    drive(policy, path(5), path(2))
    anchors = 3 * (2 * 6 * 5 + 2 * 6 * 2) * 8
    assert policy.cache_bytes == anchors + 2 * 6 * 5 * 8


# Two depths


def test_two_depths_add_their_losses():
    first, second, residuals = path(4), path(4, seed=7), path(2, seed=9)
    probes = [torch.stack([a, a + b]) for a, b in zip(first, second, strict=True)]
    _, found = drive(SeveralDepthsPolicy(CONFIG), probes, residuals)
    for step, prediction in found.items():
        anchors = [at for at in reversed(FULL) if at < step][:3]
        weights = torch.tensor(CONFIG.family.rows(anchors, step), dtype=torch.float64)
        losses = sum(predictor_losses([p[a] for a in anchors], p[step], weights) for p in (first, second))
        torch.testing.assert_close(prediction.proxy_loss, losses, rtol=1e-6, atol=1e-12)
        best = losses.gather(-1, prediction.choice[..., None])[..., 0]
        torch.testing.assert_close(best, losses.amin(dim=-1), rtol=1e-6, atol=1e-12)
    with pytest.raises(ValueError, match="depth must be at least 1"):
        SeveralDepthsPolicy(depth=0)
