"""ERTACache and channel groups: calibration by hand and against numpy, and on a model."""

import math

import numpy as np
import pytest
import torch

from tapstudy import TAPConfig, apply_policy
from tapstudy.policies.channel_groups import ChannelGroupsPolicy, best_members, group_channels
from tapstudy.policies.ertacache import ERTACachePolicy, ErtaCalibration, adjusted_times, calibrate_erta
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.full import FullPolicy
from tests.policies.loop import drive, tokens

CONFIG = TAPConfig(interval=4, history_dtype=torch.float64)


# ERTACache


def test_schedule_by_hand():
    """Residuals 10, 11, 12, 13: relative to the one held, 1/11, 2/12, then 12 is held and 1/13."""
    inputs = [tokens(0.0, 1.0)] * 4
    outputs = [tokens(r, 1 + r) for r in (10.0, 11.0, 12.0, 13.0)]
    found = calibrate_erta(inputs, outputs, 0.1)
    assert found.full_steps == {0, 2}
    assert sorted(found.lines) == sorted(found.time_scales) == [1, 3]
    assert found.time_scales[1] == 0, "the error is as large as the change"
    by_size = calibrate_erta(inputs, outputs, 0.1, time_scale="size").time_scales
    assert by_size == pytest.approx({1: 1 - 2 / 23, 3: 1 - 2 / 27})


def test_lines_against_numpy():
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    outputs = [torch.randn(2, 3, 4, generator=generator, dtype=torch.float64) for _ in range(2)]
    found = calibrate_erta(inputs, outputs, math.inf)
    reused = inputs[1] + outputs[0] - inputs[0]
    slope, offset = np.polyfit(reused.flatten().numpy(), (reused - outputs[1]).flatten().numpy(), 1)
    # (K v + B) / 4 + 1/2
    assert found.lines[1] == pytest.approx((4 * slope, 4 * (offset - 0.5)), rel=1e-10)


def test_rectified_predictions_by_hand():
    """Full at step 0 with residual 2; at x = 1, v~ = 3, and K v~ + B = 0.5 * 3 - 1 = 0.5."""
    calibration = ErtaCalibration(frozenset({0, 2}), {1: (0.5, -1.0)}, {1: 0.5})
    runs = {}
    for kind in (None, "linear", "sigmoid"):
        policy = ERTACachePolicy(calibration, rectification=kind)
        mask, predictions = drive(policy, [tokens(0.0), tokens(1.0), tokens(9.0)], [tokens(2.0)] * 3)
        assert mask == "F.F"
        runs[kind] = predictions[1].residual.item()
    assert runs == pytest.approx(
        {None: 2, "linear": 2 - (0.5 / 4 + 0.5), "sigmoid": 2 - 1 / (1 + math.exp(-0.5))}, rel=1e-6
    )


def test_times_add_up():
    """Four steps, the second and third at half speed: 1/4; 1/2 of 1/4; 1/2 of (5/8)/2; the rest."""
    times = adjusted_times(4, {0, 3}, {1: 0.5, 2: 0.5})
    assert times == pytest.approx((0, 1 / 4, 3 / 8, 3 / 8 + 5 / 32, 1))
    assert adjusted_times(4, range(4), {}) == pytest.approx((0, 0.25, 0.5, 0.75, 1))


def test_linear_rectification_helps_on_the_run_it_was_fitted_on(tiny_pipe, sample):
    """One step ahead of a full pass, least squares cannot do worse than no correction."""
    inputs, outputs, errors = [], [], {}
    policy = FullPolicy(residual="output", needs_probe=True)
    policy.probe_kind = "latent"
    with apply_policy(tiny_pipe, policy) as handle:
        handle.listen(lambda event: (inputs.append(event.probe.clone()), outputs.append(event.residual.clone())))
        sample(steps=6)
    found = calibrate_erta(inputs, outputs, math.inf)
    assert found.full_steps == {0}
    for kind in (None, "linear"):
        with apply_policy(tiny_pipe, ERTACachePolicy(found, rectification=kind), shadow=True) as handle:
            handle.listen(
                lambda event, kind=kind: (
                    errors.setdefault(kind, (event.prediction.residual - event.residual).square().sum())
                    if event.step == 1
                    else None
                )
            )
            sample(steps=6)
        assert handle.summary().contexts[0].mask == "Fsssss"
    assert errors["linear"] < errors[None]


# Channel groups


def path(steps=15):
    """Channels 0-2 constant, 3-5 straight lines, 6-8 parabolas."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = torch.randn(3, 2, 5, 9, generator=generator, dtype=torch.float64) + 3
    b[..., :3] = c[..., :6] = 0
    return [a + b * step + c * step**2 / 2 for step in range(steps)]


def test_channels_are_grouped_and_given_the_order_they_need():
    features = path()
    groups = group_channels(features, 3)
    assert groups.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    members = best_members(features, groups, config=CONFIG)
    labels = [CONFIG.family.labels[member] for member in members]
    # on even gaps an order of 2 still misses the cross term of a parabola, which a shifted horizon may make good for
    assert [labels[0].order, labels[1].order, labels[1].shift] == [0, 1, 0]
    _, predictions = drive(ChannelGroupsPolicy(groups, members, config=CONFIG), [None] * 15, features)
    for step, prediction in predictions.items():
        torch.testing.assert_close(prediction.residual[..., :6], features[step][..., :6])


def test_one_group_is_a_fixed_predictor():
    features = path()
    member = CONFIG.family.labels.index(next(x for x in CONFIG.family.labels if (x.order, x.shift) == (2, 1)))
    groups = torch.zeros(9, dtype=torch.int64)
    mask, predictions = drive(ChannelGroupsPolicy(groups, [member], config=CONFIG), [None] * 15, features)
    fixed_mask, fixed = drive(FixedPolicy(2, 1, config=CONFIG), [None] * 15, features)
    assert mask == fixed_mask
    for step, prediction in predictions.items():
        torch.testing.assert_close(prediction.residual, fixed[step].residual)


def test_best_members_against_a_loop():
    generator = torch.Generator().manual_seed(3)
    features = [torch.randn(1, 4, 5, generator=generator, dtype=torch.float64).cumsum(dim=1) for _ in range(13)]
    groups = torch.tensor([1, 0, 1, 0, 0])
    config = TAPConfig(interval=4, orders=(0, 1), shifts=(0, 1), history_dtype=torch.float64)
    errors = np.zeros((4, 2))
    for p, label in enumerate(config.family.labels):
        predictions = drive(FixedPolicy(label.order, label.shift, config=config), [None] * 13, features)[1]
        for step, prediction in predictions.items():
            for c in range(5):
                errors[p, groups[c]] += ((prediction.residual - features[step])[..., c] ** 2).sum()
    assert best_members(features, groups, config=config) == tuple(errors.argmin(axis=0))


def test_what_cannot_be_meant():
    with pytest.raises(ValueError, match="step 0 a full step"):
        ERTACachePolicy(ErtaCalibration(frozenset({1}), {}, {}))
    with pytest.raises(ValueError, match="2 groups need as many members, each below 15"):
        ChannelGroupsPolicy(torch.tensor([0, 1]), [3])
    with pytest.raises(ValueError, match="needs three steps"):
        group_channels(path(2), 2)
