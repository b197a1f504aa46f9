"""Choices and means of compiled loops against those from the losses of all predictors in float64."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy.analysis import selection, window_scores
from tapstudy.analysis.fused_scores import BLOCK, LANES, blocks_of, compiled
from tapstudy.analysis.rescoring import rescore
from tapstudy.analysis.selection import ErrorForms, Selection, fused_selection
from tapstudy.analysis.teacher_forced import Trajectories, Windows
from tapstudy.analysis.window_scores import WindowScores, compiled_loops
from tapstudy.core.scoring import least
from tapstudy.policies.config import TAPConfig
from tests.analysis.trajectories import make_features
from tests.table import each_row

# anchors before the steps 5, 6 and 7, and 10, 11 and 12: two alike windows
STEPS = ((5, 6, 7), (10, 11, 12))
ANCHORS = ((4, 2, 1), (9, 7, 6))


@pytest.fixture
def without_numba(monkeypatch):
    for module in (window_scores, selection):
        monkeypatch.setattr(module, "compiled_loops", lambda: None)


def scores_of(values, count, **options):
    """Of features (sample, step, token, channel), with so many anchors."""
    windows = Windows(STEPS, tuple(anchors[:count] for anchors in ANCHORS))
    return WindowScores(Trajectories(values, range(values.shape[1])), windows, **options)


def reference(probe, residual, weights, distance):
    """From float64 losses of the products that torch finds, (S, P, T) twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_scores, "compiled_loops", lambda: None)
        return (
            probe.losses(weights, distance, dtype=torch.float64),
            residual.losses(weights, "l2", dtype=torch.float64),
        )


def assert_least(found, index, losses, rtol):
    """The losses found are the least, and at their places wherever the next one is clearly larger."""
    torch.testing.assert_close(found.double(), losses.gather(1, index[:, None])[:, 0], rtol=rtol, atol=1e-20)
    two = losses.topk(2, dim=1, largest=False)
    clear = two.values[:, 1] > two.values[:, 0] * (1 + 1e-6)
    assert torch.equal(index[clear], two.indices[:, 0][clear])
    torch.testing.assert_close(found.double(), two.values[:, 0], rtol=rtol, atol=1e-20)


def assert_same(found, losses, rtol=2e-6):
    proxy, error = losses
    assert_least(found.chosen_proxy, found.choice, proxy, rtol)
    assert_least(found.best_error, found.best, error, rtol)
    expected = Selection.of(proxy, error, found.choice, rows=found.mean_proxy.shape[-1])
    for name in ("chosen_error", "mean_proxy", "mean_error"):
        torch.testing.assert_close(
            getattr(found, name).double(), getattr(expected, name), rtol=rtol, atol=1e-20, msg=lambda m, n=name: n + m
        )


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from([(1, "cosine", 1), (3, "cosine", 1), (3, "l2", 1), (2, "cosine", 0), (3, "l2", 0)]),
    closeness=st.sampled_from([None, 1e-2, 4e-5]),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_equal_to_float64_losses(seed, kind, closeness, scale):
    """Kinds of predictors: number of anchors, distance, whether weights sum to 1.

    Random features, nearly identical and badly scaled ones; tokens of one vector and a few more.
    """
    count, distance, sums_are_one = kind
    rng = np.random.default_rng(seed)
    tokens = int(rng.integers(1, 40))

    def features(width):
        noise = rng.standard_normal((2, 14, tokens, width))
        values = noise if closeness is None else rng.standard_normal((2, 1, tokens, width)) + closeness * noise
        return (scale * values * 10.0 ** rng.integers(-2, 3, (1, 1, tokens, 1))).astype(np.float32)

    probe, residual = scores_of(features(24), count), scores_of(features(9), count)
    weights = torch.from_numpy(rng.standard_normal((3, 5, count)))
    if sums_are_one:
        weights[..., 0] += 1 - weights.sum(dim=-1)
    expected = reference(scores_of_same(probe), scores_of_same(residual), weights, distance)
    assert_same(fused_selection(probe, residual, ErrorForms.of(weights), distance=distance), expected)


def scores_of_same(scores):
    """Without what is already found."""
    return WindowScores(scores.trajectories, scores.windows, history_dtype=scores.history_dtype)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("history_dtype", [None, torch.float16, torch.float64])
def test_products_equal_those_of_torch(count, history_dtype, without_numba):
    values = np.random.default_rng(count).standard_normal((2, 14, 37, 21)).astype(np.float32)
    scores = scores_of(values, count, history_dtype=history_dtype)
    expected = scores.products
    found = torch.empty_like(expected)
    loops = compiled_loops()
    for row, (sample, window) in enumerate(np.ndindex(2, 2)):
        stored = torch.from_numpy(values[sample, list(ANCHORS[window][:count])])
        stored = stored if history_dtype is None else stored.to(history_dtype).float()
        steps = values[sample, list(STEPS[window])]
        loops.products(stored.numpy(), np.arange(count), steps, 37 * row, found.numpy())
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@each_row("distance", ["cosine", "l2"])
def test_features_without_direction(distance):
    values = np.ones((1, 14, 3, 4), np.float32)
    values[:, 5, 0] = 0  # the actual features of one token
    values[:, :, 2] = np.nan
    rows = torch.tensor([[1.0, 0, 0], [0, 0, 0], [-2.0, 0, 0]], dtype=torch.float64).expand(3, -1, -1)
    scores = scores_of(values, 3)
    found = fused_selection(scores, scores, ErrorForms.of(rows), distance=distance)
    losses = [scores.losses(rows, kind) for kind in (distance, "l2")]
    expected = Selection.of(*losses, least(losses[0])[1], rows=2)
    for name in ("chosen_proxy", "choice", "chosen_error", "best_error", "best"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), equal_nan=True)


@pytest.mark.parametrize(
    "settings", [{"warmup_steps": 1}, {"distance": "l2"}, {"shifts": tuple(i / 8 for i in range(40))}]
)
def test_rescoring_with_and_without_numba(settings, request):
    """230 tokens make several blocks; warm-up 1 makes windows with one, two and three anchors."""
    data = make_features(tokens=230, contexts=0, steps=14)
    config = TAPConfig(interval=4, **settings)
    fused = rescore(data, config, selected_only=True).compute()
    scores = rescore(data, config).compute()
    request.getfixturevalue("without_numba")
    eager = rescore(data, config, selected_only=True).compute()
    assert {name: fused[name].dtype for name in fused} == {name: eager[name].dtype for name in eager}
    for name in ("choice", "best"):
        same = fused[name].values == eager[name].values
        assert same.mean() > 0.99
        losses = scores["proxy_loss" if name == "choice" else "true_error"].values[~same]
        for kind in (fused, eager):  # where the predictors differ, their losses do not
            taken = np.take_along_axis(losses, kind[name].values[~same][:, None].astype(int), axis=1)[:, 0]
            np.testing.assert_allclose(taken, losses.min(axis=1), rtol=1e-6)
        if name == "choice":
            chosen = same
    for name in ("chosen_proxy_loss", "best_true_error", "mean_proxy_loss", "mean_true_error"):
        np.testing.assert_allclose(fused[name], eager[name], rtol=1e-6, err_msg=name)
    error = fused["chosen_true_error"].values
    np.testing.assert_allclose(error[chosen], eager["chosen_true_error"].values[chosen], rtol=1e-6)
    np.testing.assert_array_equal(fused["regret"], error - fused["best_true_error"].values)


def test_no_numba(monkeypatch):
    compiled_loops.cache_clear()
    monkeypatch.delitem(sys.modules, "tapstudy.analysis.fused_scores")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert compiled_loops() is None
    compiled_loops.cache_clear()


def test_a_function_whose_file_cannot_be_kept_is_compiled_all_the_same():
    names = {}
    exec("def double(x):\n    return 2 * x", names)
    assert compiled(names["double"])(3) == 6


def test_blocks():
    assert blocks_of(40, 2).tolist() == [[0, 0, 40], [1, 40, 80]]
    assert blocks_of(196, 1).tolist() == [[0, 0, 112], [0, 112, 196]]
    for tokens in (1, BLOCK, BLOCK + 1, 1000):
        _, start, stop = blocks_of(tokens, 3).T
        np.testing.assert_array_equal(start[1:], stop[:-1])
        assert (start[0], stop[-1]) == (0, 3 * tokens)
        assert (stop - start).max() <= BLOCK
        inner = (stop % tokens) != 0
        assert ((stop - start)[inner] % LANES == 0).all()
