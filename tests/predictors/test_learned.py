"""Learned weights against stacked least squares, and their limits."""

import numpy as np
import pytest
import torch

from tapstudy.predictors.family import candidates
from tapstudy.predictors.learned import LearnedLinear, step_gram
from tests.table import each_row

STEPS, FULL = 16, (0, 1, 2, 6, 10, 14)


def recorded(seed=0, samples=3):
    """Trajectories (step, token, channel) of random curves."""
    rng = np.random.default_rng(seed)
    t = np.arange(STEPS)[:, None, None] / STEPS
    return [
        torch.from_numpy(rng.normal(size=(1, 5, 4)) + np.sin(3 * t + rng.normal(size=(1, 5, 4))))
        for _ in range(samples)
    ]


def test_gram_is_the_sum_of_inner_products():
    trajectories = recorded()
    gram = step_gram(iter(trajectories))
    expected = sum(float((x[3] * x[9]).sum()) for x in trajectories)
    assert float(gram[3, 9]) == pytest.approx(expected)
    assert gram.dtype == torch.float64
    assert step_gram(x.float() for x in trajectories).dtype == torch.float64


@each_row("num_anchors", [1, 2, 3])
def test_fit_is_least_squares_over_all_steps_of_a_pattern(num_anchors):
    """At distance 2 from anchors 4 apart: steps 12 (from 10, 6, 2), and with two anchors step 8 (6, 2) as well."""
    trajectories = recorded()
    family = LearnedLinear.fit(step_gram(trajectories), FULL, num_anchors=num_anchors, ridge=0)
    steps = {1: (4, 8, 12), 2: (8, 12), 3: (12,)}[num_anchors]
    design, target = [], []
    for trajectory in trajectories:
        for step in steps:
            anchors = [a for a in sorted(FULL, reverse=True) if a < step][:num_anchors]
            design.append(np.stack([trajectory[a].numpy().ravel() for a in anchors], axis=1))
            target.append(trajectory[step].numpy().ravel())
    expected = np.linalg.lstsq(np.concatenate(design), np.concatenate(target), rcond=None)[0]
    (row,) = family.rows((10, 6, 2)[:num_anchors], 12)
    assert row == pytest.approx(expected, rel=1e-6, abs=1e-8)
    assert family.rows((30, 26, 22)[:num_anchors], 32) == [row]  # distances alone


def test_ridge_normal_equations_and_reuse_in_the_limit():
    gram = step_gram(recorded())
    normal = np.zeros((2, 2))
    right = np.zeros(2)
    for step, anchors in ((8, (6, 2)), (12, (10, 6))):
        normal += gram[list(anchors)][:, list(anchors)].numpy()
        right += gram[list(anchors), step].numpy()
    penalty = 0.3 * np.trace(normal) / 2
    expected = np.linalg.solve(normal + penalty * np.eye(2), right + penalty * np.array([1, 0]))
    (row,) = LearnedLinear.fit(gram, FULL, num_anchors=2, ridge=0.3).rows((6, 2), 8)
    assert row == pytest.approx(expected, rel=1e-9)
    (row,) = LearnedLinear.fit(gram, FULL, ridge=1e9).rows((10, 6, 2), 12)
    assert row == pytest.approx((1, 0, 0), abs=1e-6)


def test_quadratics_are_learned_exactly():
    rng = np.random.default_rng(1)
    t = np.arange(STEPS)[:, None] / STEPS
    curves = [torch.from_numpy(rng.normal(size=8) + rng.normal(size=8) * t + rng.normal(size=8) * t**2)]
    (row,) = LearnedLinear.fit(step_gram(curves), FULL, ridge=0).rows((10, 6, 2), 13)
    # distance 3 past even gaps 4: the Lagrange weights (1+u)(2+u)/2, -u(2+u), u(1+u)/2 at u = 3/4
    assert row == pytest.approx((1.75 * 2.75 / 2, -0.75 * 2.75, 0.75 * 1.75 / 2), rel=1e-5)


def test_unseen_patterns():
    gram = step_gram(recorded())
    family = LearnedLinear.fit(gram, FULL)
    with pytest.raises(
        ValueError, match=r"no weights for step 20 from anchors \(16, 8, 0\) \(distances \(8, 16, 4\)\)"
    ):
        family.rows((16, 8, 0), 20)
    lenient = LearnedLinear.fit(gram, FULL, unseen="reuse")
    assert lenient.rows((16, 8, 0), 20) == [(1.0, 0.0, 0.0)]
    assert candidates(lenient, (16, 8, 0), 20).weights.tolist() == [[1.0, 0.0, 0.0]]


@each_row(
    ("make", "message"),
    [
        (lambda g: LearnedLinear.fit(g[:3], FULL), "square"),
        (lambda g: LearnedLinear.fit(g * float("nan"), FULL), "finite square"),
        (lambda g: LearnedLinear.fit(g, (0, 16)), r"must lie in 0\.\.15"),
        (lambda g: LearnedLinear.fit(g, range(16)), "leaves no step"),
        (lambda g: LearnedLinear.fit(g, FULL, num_anchors=0), "num_anchors of at least 1"),
        (lambda g: LearnedLinear.fit(g, FULL, ridge=-1), "ridge of at least 0"),
        (lambda g: step_gram([]), "no trajectories"),
        (lambda g: step_gram([torch.zeros(3, 2), torch.zeros(4, 2)]), "4 steps after one of 3"),
        (lambda g: step_gram([torch.full((3, 2), float("nan"))]), "not finite"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(step_gram(recorded()))
