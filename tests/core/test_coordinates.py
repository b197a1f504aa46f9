"""Scoring in float32, as accelerators do it, against float64 and extended precision."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy.core import coordinates
from tapstudy.core.coordinates import coefficients_of, coordinate_scores
from tapstudy.core.scoring import losses_of, predictor_losses
from tests.core.test_scoring import extended, taylor_rows
from tests.table import each_row

KINDS = ("near", "nearer", "large mean", "smooth", "along", "far", "scaled", "repeated")


def hard(kind, seed, *, dtype=torch.float32, tokens=30, width=24):
    """Features and three anchors, (1, token, channel) each, that float32 has a hard time with."""
    rng = np.random.default_rng(seed)
    base, noise = rng.standard_normal((tokens, width)), rng.standard_normal((4, tokens, width))
    time = np.array([23, 18, 10, 2])[:, None, None] / 23
    trend = rng.standard_normal((2, tokens, width))
    values = {
        "near": lambda: base + 1e-3 * noise,
        "nearer": lambda: base + 1e-6 * noise,
        "large mean": lambda: 100 + 0.1 * base + 1e-2 * noise,
        "smooth": lambda: base + 0.3 * (time * trend[0] + time**2 * trend[1]) + 3e-4 * noise,
        "along": lambda: base * (1 + 0.1 * time) + 1e-3 * noise,  # the error is nearly parallel to the features
        "far": lambda: noise,
        "scaled": lambda: (base + 1e-2 * noise) * 10.0 ** rng.integers(-4, 5, (tokens, 1)),
        "repeated": lambda: np.where(rng.random((4, tokens, 1)) < 0.5, base, noise),  # differences of exactly 0
    }[kind]()
    actual, *anchors = torch.tensor(values)[:, None].to(dtype)
    return anchors, actual


def rank(anchors, actual, weights, distance):
    """Ranking scores, (predictor, token)."""
    return coordinate_scores(anchors, actual, coefficients_of(distance)(weights), distance=distance)


def reference(anchors, actual, weights, distance):
    """Losses in float64, (predictor, token)."""
    return predictor_losses([a.double() for a in anchors], actual.double(), weights, distance=distance)[0].T


def check_choices(choice, losses):
    """Each is the least, or so near that nobody minds; a cosine of 1 to all digits of float32 is a perfect one."""
    taken = losses.gather(0, choice[None])[0]
    assert (taken <= losses.amin(dim=0) * (1 + 1e-5) + 1e-14).all()


@settings(max_examples=150)
@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from(["cosine", "l2", "l1"]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    reproduces=st.booleans(),
)
def test_choices_equal_float64(seed, distance, kind, dtype, reproduces):
    anchors, actual = hard(kind, seed, dtype=dtype)
    random = torch.randn(12, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weights = taylor_rows() if reproduces else random
    scores = rank(anchors, actual, weights, distance)
    check_choices(scores.argmin(dim=0), reference(anchors, actual, weights, distance))


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS), fineness=st.sampled_from([1, 10]))
def test_an_error_grows_with_the_cancellation_once(seed, kind, fineness):
    """A loss is good to 1e-6 sum |w_j d_j| / |e|: inner products in float32 would lose the square of that ratio."""
    anchors, actual = hard(kind, seed)
    weights = torch.tensor(
        [row for shift in range(5 * fineness) for row in taylor_rows(step=23 - shift / fineness).tolist()[::5]],
        dtype=torch.float64,
    )
    found = losses_of(rank(anchors, actual, weights, "l2"), distance="l2").double()
    newest, *others, last = (value[0].double() for value in (*anchors, actual))
    lengths = torch.stack([newest - last, *(other - newest for other in others)]).norm(dim=-1)  # (J, T)
    terms = torch.cat([weights.sum(dim=1, keepdim=True), weights[:, 1:]], dim=1).abs() @ lengths / last.norm(dim=-1)
    assert ((found - reference(anchors, actual, weights, "l2")).abs() <= 1e-6 * terms + 1e-6 * found).all()


@each_row(("distance", "count"), list(product(["cosine", "l2", "l1"], [1, 2, 4])))
def test_losses_equal_extended_precision(distance, count):
    rng = np.random.default_rng(count)
    actual, *anchors = torch.tensor(rng.standard_normal((count + 1, 1, 20, 33)), dtype=torch.float32)
    weights = torch.tensor(rng.standard_normal((7, count)))
    found = losses_of(rank(anchors, actual, weights, distance), distance=distance).double()
    if distance == "l1":
        expected = reference(anchors, actual, weights, distance)
    else:
        expected = torch.tensor(extended([a[0] for a in anchors], actual[0], weights, distance).astype(float)).T
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


def test_tokens_of_zeros_have_no_direction():
    actual, anchor, weights = torch.zeros(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1, 1, dtype=torch.float64)
    assert (rank([anchor], actual, weights, "cosine") == 0).all()
    assert (rank([anchor], actual, weights, "l2") == 4).all()
    assert (rank([anchor], actual, weights, "l1") == 4).all()


def test_predictions_of_any_size_and_direction():
    """Opposite, a hundred million times too large or too small, and none at all."""
    actual, beside = torch.tensor([[[3.0, 4.0, 0.0]]]), torch.tensor([[[3.0, 4.0, 5.0]]])
    weights = torch.tensor([[-1.0, 0], [1e8, 0], [1e-8, 0], [0, -1], [0, 1e8], [0, 1e-8], [0, 0]], dtype=torch.float64)
    infinite = torch.inf
    expected = [infinite, -infinite, -infinite, 1, -1, -1, 0]  # -cot|cot| of 180, 0, 0, 135, 45, 45 degrees, of none
    assert rank([actual, beside], actual, weights, "cosine")[:, 0].tolist() == pytest.approx(expected, rel=1e-6)


def test_chunks_make_no_difference(monkeypatch):
    anchors, actual = hard("near", 0)
    expected = {distance: rank(anchors, actual, taylor_rows(), distance) for distance in ("cosine", "l2", "l1")}
    monkeypatch.setattr(coordinates, "CHUNK_BYTES", 7 * 8 * 24 * 4)  # 7 of 30 tokens
    for distance, scores in expected.items():
        torch.testing.assert_close(rank(anchors, actual, taylor_rows(), distance), scores, rtol=1e-6, atol=0)


def test_inputs_stay_as_they_are():
    anchors, actual = hard("near", 0)
    before = [value.clone() for value in (*anchors, actual)]
    rank(anchors, actual, taylor_rows(), "cosine")
    assert all(torch.equal(now, then) for now, then in zip((*anchors, actual), before, strict=True))
