"""Scores from one Gram matrix per window against naive loops in extended precision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tapstudy.analysis import window_scores
from tapstudy.analysis.teacher_forced import Trajectories, windows_of
from tapstudy.analysis.window_scores import WindowScores
from tapstudy.predictors.family import candidates
from tapstudy.predictors.taylor import TaylorFamily

FULL = (0, 1, 2, 7, 12)


@pytest.fixture(params=["compiled", "torch"], scope="module", autouse=True)
def loops(request):
    """With the compiled loops, and as if numba were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "torch":
            patch.setattr(window_scores, "compiled_loops", lambda: None)
        yield


def naive(values, windows, step, weights, distance):
    """(B, step, token, channel) -> (predictor, B * W * token)."""
    values = values.astype(np.longdouble)
    rows = []
    for sample in values:
        for anchors, steps in zip(windows.anchors, windows.steps, strict=True):
            actual = sample[steps[step]]
            length = np.linalg.norm(actual, axis=-1)
            found = []
            for row in weights.tolist():
                guess = sum(weight * sample[anchor] for weight, anchor in zip(row, anchors, strict=True))
                if distance == "l2":
                    found.append(np.linalg.norm(guess - actual, axis=-1) / length)
                else:
                    size = np.linalg.norm(guess, axis=-1, keepdims=True)
                    found.append(np.square(guess / size - actual / length[:, None]).sum(axis=-1) / 2)
            rows.append(np.stack(found))
    return np.concatenate(rows, axis=1)


def scores_of(values, distance, weights_of):
    """Found and naive losses, (predictor, token rows) each, at every skip step."""
    trajectories = Trajectories(values, range(values.shape[1]))
    for windows in windows_of(range(values.shape[1]), FULL, 3, size=2):
        scores = WindowScores(trajectories, windows)
        for step, position in enumerate(windows.steps[0]):
            weights = weights_of(windows.anchors[0], position)
            found = scores.losses(weights[None], distance, start=step)[0]
            yield found.numpy(), naive(values, windows, step, weights, distance)


def taylor(anchors, step):
    return candidates(TaylorFamily(), anchors, step).weights


@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from(["cosine", "l2"]),
    # cosine distances near 1, 1e-4 and 1e-9
    closeness=st.sampled_from([None, 1e-2, 4e-5]),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_equal_to_naive_loops(seed, distance, closeness, scale):
    rng = np.random.default_rng(seed)
    shape = (2, 18, 5, 16)
    values = rng.standard_normal(shape) if closeness is None else (
        rng.standard_normal((2, 1, 5, 16)) + closeness * rng.standard_normal(shape)
    )  # fmt: skip
    values = (scale * values * 10.0 ** rng.integers(-2, 3, (1, 1, 5, 1))).astype(np.float32)
    for found, expected in scores_of(values, distance, taylor):
        np.testing.assert_allclose(found, expected.astype(float), rtol=1e-6, atol=1e-21)
        taken = np.take_along_axis(expected, found.argmin(axis=0)[None], axis=0)[0]
        assert (taken <= expected.min(axis=0) * (1 + 1e-6)).all()


@pytest.mark.parametrize("distance", ["cosine", "l2"])
def test_steps_of_other_sizes_and_weights_that_do_not_reproduce_constants(distance):
    """Actual features a hundred times smaller or larger than the newest anchor."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 18, 4, 16)) * 10.0 ** rng.integers(-1, 2, (1, 18, 1, 1))
    rows = torch.tensor([[0.5, -2.0, 1.0], [3.0, 0.1, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    for found, expected in scores_of(values.astype(np.float32), distance, lambda *_: rows):
        np.testing.assert_allclose(found, expected.astype(float), rtol=1e-6)


def test_zero_features_have_no_direction():
    values = np.ones((1, 18, 2, 4), np.float32)
    values[:, 5, 0] = 0  # the actual features of one token
    rows = torch.tensor([[1.0, 0, 0], [0, 0, 0]], dtype=torch.float64)
    windows = next(one for one in windows_of(range(18), FULL, 3, size=1) if 5 in one.steps[0])
    step = windows.steps[0].index(5)
    scores = WindowScores(Trajectories(values, range(18)), windows)
    assert scores.losses(rows[None], "cosine", start=step)[0].tolist() == [[1, 0], [1, 1]]
    assert scores.losses(rows[None], "l2", start=step)[0].tolist() == [[2, 0], [0, 1]]  # the absolute norm


def test_rounded_anchors_count_as_stored():
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 18, 3, 8)).astype(np.float32)
    rounded = values.copy()
    rounded[:, FULL] = rounded[:, FULL].astype(np.float16)
    for windows in windows_of(range(18), FULL, 3, size=3):
        weights = taylor(windows.anchors[0], windows.steps[0][0])[None]
        for distance in ("cosine", "l2", "l1"):
            found, expected = (
                WindowScores(Trajectories(one, range(18)), windows, history_dtype=dtype).losses(weights, distance)
                for one, dtype in ((values, torch.float16), (rounded, None))
            )
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
