"""Inner products, of the anchors once and of every step anew, against all pairs in extended precision."""

import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy.core import products
from tapstudy.core.products import anchor_products, quadratic_form, step_products
from tapstudy.core.scoring import choose, losses_of, score, tap_step
from tapstudy.core.weights import extrapolation_row
from tests.core.test_scoring import extended, taylor_rows
from tests.table import each_row


def steps(seed, closeness, *, count=5, dtype=torch.float32):
    """Anchors and what came after them, (1, 30, 24) each."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 30, 24, generator=generator)
    values = [(base + closeness * torch.randn(base.shape, generator=generator)).to(dtype) for _ in range(3 + count)]
    return values[:3], values[3:]


def all_products(anchors, actual):
    """Of all pairs of [F, d_1, .., g], and the products of the vectors' lengths, (K, T)."""
    newest, *others, actual = (
        value.flatten(0, 1).double().numpy().astype(np.longdouble) for value in (*anchors, actual)
    )
    vectors = np.stack([actual, *(other - newest for other in others), newest - actual])
    gram = np.einsum("itd,jtd->ijt", vectors, vectors)
    lengths = np.linalg.norm(vectors, axis=-1)
    first, second = torch.triu_indices(len(vectors), len(vectors))
    return gram[first, second], lengths[first] * lengths[second]


def check_products(anchors, actual, known, *, rtol=1e-9):
    """Exact to rounding beside the lengths of the vectors."""
    expected, lengths = all_products(anchors, actual)
    found = step_products(anchors, actual, known).numpy()
    assert (np.abs(found - expected) <= rtol * lengths).all()


@each_row(("count", "dtype"), list(itertools.product([1, 2, 3], [torch.float32, torch.bfloat16, torch.float64])))
def test_products_of_anchors_serve_all_steps(count, dtype):
    anchors, later = steps(0, 1e-2, dtype=dtype)
    known = anchor_products(anchors[:count])
    assert known.shape == (count, count, 30)
    for actual in later:
        check_products(anchors[:count], actual, known)


def test_chunks_make_no_difference(monkeypatch):
    anchors, (actual, *_) = steps(5, 1e-2)
    expected = {distance: score(anchors, actual, taylor_rows(), distance=distance) for distance in ("cosine", "l1")}
    monkeypatch.setattr(products, "CHUNK_BYTES", 7 * 4 * 24 * 8)  # 7 of 30 tokens
    for distance, scores in expected.items():
        found = score(anchors, actual, taylor_rows(), distance=distance)
        torch.testing.assert_close(found, scores, rtol=1e-6, atol=0)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from(["cosine", "l2"]),
    closeness=st.sampled_from([1e-6, 1e-5, 1e-4, 1e-2, 1.0]),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_choices_of_several_steps_obey_the_rule(seed, distance, closeness, scale):
    """The winner is that of extended precision unless the two best differ by less than 1e-6 relative."""
    anchors, later = steps(seed, closeness, count=3)
    anchors, later = [scale * a for a in anchors], [scale * a for a in later]
    weights = torch.tensor(
        [extrapolation_row((18, 10, 2), m, 5 - s) for m in (0, 1, 2) for s in range(5)], dtype=torch.float64
    )
    known = anchor_products(anchors)
    for actual in later:
        scores = score(anchors, actual, weights, distance=distance, known=known)
        losses = losses_of(scores, distance=distance)[0]
        truth = extended([a[0] for a in anchors], actual[0], weights, distance)
        np.testing.assert_allclose(losses.double().numpy(), truth.astype(float), rtol=2e-6, atol=1e-30)
        taken = np.take_along_axis(truth, choose(scores, distance=distance)[0].numpy()[:, None], axis=-1)[:, 0]
        assert (taken <= truth.min(axis=-1) * (1 + 1e-6)).all()


@each_row("distance", ["cosine", "l2"])
def test_tokens_much_smaller_than_the_anchors_keep_their_precision(distance):
    anchors, (actual, *_) = steps(1, 1e-2)
    actual[0, 3:5] *= torch.tensor([[1e-4], [1e-6]])
    losses = losses_of(score(anchors, actual, taylor_rows(), distance=distance), distance=distance)[0]
    truth = extended([a[0] for a in anchors], actual[0], taylor_rows(), distance)
    np.testing.assert_allclose(losses, truth.astype(float), rtol=2e-6)


@given(seed=st.integers(0, 10_000), distance=st.sampled_from(["cosine", "l2", "l1"]), power=st.integers(-20, 20))
def test_scores_do_not_depend_on_scale_or_order_of_channels(seed, distance, power):
    anchors, (actual, *_) = steps(seed, 1e-2)
    channels = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    expected = score(anchors, actual, taylor_rows(), distance=distance)
    found = score(
        [2.0**power * anchor[..., channels] for anchor in anchors],
        2.0**power * actual[..., channels],
        taylor_rows(),
        distance=distance,
    )
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@given(seed=st.integers(0, 10_000), count=st.integers(1, 5))
def test_the_form_is_a_square(seed, count):
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 7, generator=generator, dtype=torch.float64)
    coefficients = torch.randn(4, count, generator=generator, dtype=torch.float64)
    first, second = torch.triu_indices(count, count)
    products = (vectors[first] * vectors[second]).sum(dim=-1)
    expected = (coefficients @ vectors).square().sum(dim=-1)
    torch.testing.assert_close(quadratic_form(coefficients) @ products, expected, rtol=1e-10, atol=1e-12)


def test_a_step_that_an_anchor_repeats_copies_its_residual():
    """Where the probe is an anchor's, that anchor's predictor has no loss, and its residual is the prediction."""

    class History:
        residuals = tuple(torch.full((1, 30, 2), float(j)) for j in range(3))

    anchors, _ = steps(6, 1.0)
    for j, anchor in enumerate(anchors):
        residual, choice, scores = tap_step(anchors, anchor, History(), torch.eye(3, dtype=torch.float64))
        assert (choice == j).all()
        assert torch.equal(residual, History.residuals[j])
        assert (losses_of(scores)[..., j] < 1e-12).all()
