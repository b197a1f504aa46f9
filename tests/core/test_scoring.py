"""Scoring against naive float64, and selection by hand."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy.core.scoring import assemble, choose, least, losses_of, predictor_losses, score, select
from tapstudy.core.weights import extrapolation_row
from tests.table import each_row


def naive(anchors, actual, weights, distance):
    """Every candidate built explicitly."""
    anchors, actual = [a.double() for a in anchors], actual.double()
    losses = []
    for row in weights.tolist():
        predicted = sum(w * a for w, a in zip(row, anchors, strict=True))
        if distance == "cosine":
            dot = (predicted * actual).sum(-1)
            losses.append(1 - dot / (predicted.norm(dim=-1) * actual.norm(dim=-1)))
        else:
            p = 1 if distance == "l1" else 2
            losses.append((predicted - actual).norm(p=p, dim=-1) / actual.norm(p=p, dim=-1))
    return torch.stack(losses, dim=-1)


def taylor_rows(anchors=(18, 10, 2), step=23):
    return torch.tensor(
        [extrapolation_row(anchors, m, step - anchors[0] - s) for m in (0, 1, 2) for s in range(5)], dtype=torch.float64
    )


@each_row(("distance", "closeness"), list(product(["cosine", "l2", "l1"], [1.0, 1e-2, 1e-4])))
def test_losses_equal_naive(distance, closeness):
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(2, 40, 33, generator=generator)
    actual, *anchors = (base + closeness * torch.randn(base.shape, generator=generator) for _ in range(4))
    found = predictor_losses(anchors, actual, taylor_rows(), distance=distance)
    # the naive cosine itself is only good to 1e-16 in absolute terms
    assert found.dtype == torch.float32
    expected = naive(anchors, actual, taylor_rows(), distance)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2e-15)
    exact = predictor_losses([a.double() for a in anchors], actual.double(), taylor_rows(), distance=distance)
    torch.testing.assert_close(exact, expected, rtol=1e-9, atol=2e-15)


def test_tiny_cosine_distances_are_exact():
    """An angle of 1e-7 has cosine distance 5e-15, below what 1 - cos can see in float64."""
    actual = torch.zeros(1, 1, 8, dtype=torch.float64)
    actual[..., 0] = 1
    anchor = actual.clone()
    anchor[..., 1] = 1e-7
    weights = torch.tensor([[1.0]], dtype=torch.float64)
    loss = predictor_losses([anchor], actual, weights)
    assert loss.item() == pytest.approx(0.5e-14, rel=1e-6)


def test_weights_that_do_not_reproduce_constants():
    generator = torch.Generator().manual_seed(1)
    actual, a, b = (torch.randn(1, 9, 7, generator=generator) for _ in range(3))
    weights = torch.tensor([[0.5, -2.0], [3.0, 0.1], [0.0, 0.0]], dtype=torch.float64)
    for distance in ("l2", "l1"):
        found = predictor_losses([a, b], actual, weights, distance=distance)
        torch.testing.assert_close(found.double(), naive([a, b], actual, weights, distance), rtol=1e-6, atol=0)
    found = predictor_losses([a, b], actual, weights)
    torch.testing.assert_close(found[..., :2].double(), naive([a, b], actual, weights[:2], "cosine"), rtol=1e-6, atol=0)
    assert (found[..., 2] == 1).all()  # no direction at all


def test_zero_tokens_have_no_direction():
    actual = torch.zeros(1, 2, 4)
    anchor = torch.ones(1, 2, 4)
    weights = torch.ones(1, 1, dtype=torch.float64)
    assert (predictor_losses([anchor], actual, weights) == 1).all()
    torch.testing.assert_close(predictor_losses([anchor], actual, weights, distance="l2"), torch.full((1, 2, 1), 2.0))


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["cosine", "l2"]),
    st.sampled_from([1e-6, 1e-3, 1.0, 1e3]),
    st.sampled_from([1e-5, 1e-2, 1.0]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
)
def test_choices_equal_float64(seed, distance, scale, closeness, dtype):
    """The chosen predictor is the naive float64 winner unless the two best differ by less than 1e-6 relative."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 30, 24, generator=generator)
    actual, *anchors = (
        (scale * (base + closeness * torch.randn(base.shape, generator=generator))).to(dtype) for _ in range(4)
    )
    weights = taylor_rows()
    truth = naive(anchors, actual, weights, distance)
    choice = select(predictor_losses(anchors, actual, weights, distance=distance))
    taken = truth.gather(-1, choice.unsqueeze(-1)).squeeze(-1)
    assert (taken <= truth.min(dim=-1).values * (1 + 1e-6) + 2e-15).all()


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from(["cosine", "l2"]),
    kind=st.sampled_from(["random", "near", "scaled", "one token"]),
    reproduces=st.booleans(),
)
def test_choices_obey_the_rule_on_hard_inputs(seed, distance, kind, reproduces):
    """The winner is that of extended precision unless the two best differ by less than 1e-6 relative."""
    rng = np.random.default_rng(seed)
    shape = (4, 12, 16)  # actual and three anchors
    values = rng.standard_normal(shape)
    if kind == "near":
        values = values[:1] + 1e-4 * rng.standard_normal(shape)
    elif kind == "scaled":
        values *= 10.0 ** rng.integers(-8, 9, (1, 12, 1))
    elif kind == "one token":
        values[:, 3] *= 1e6
    actual, *anchors = torch.tensor(values, dtype=torch.float32)[:, None]
    weights = taylor_rows() if reproduces else torch.tensor(rng.standard_normal((9, 3)))
    losses = predictor_losses(anchors, actual, weights, distance=distance)
    truth = extended(anchors, actual, weights, distance)
    np.testing.assert_allclose(losses.double().numpy(), truth.astype(float), rtol=2e-6, atol=1e-30)
    scores = score(anchors, actual, weights, distance=distance)
    np.testing.assert_allclose(losses_of(scores, distance=distance), truth.astype(float), rtol=2e-6, atol=1e-30)
    for choice in (select(losses), choose(scores, distance=distance)):
        taken = np.take_along_axis(truth, choice.numpy()[..., None], axis=-1)[..., 0]
        assert (taken <= truth.min(axis=-1) * (1 + 1e-6)).all()


def extended(anchors, actual, weights, distance):
    """Losses in extended precision, the cosine without cancellation."""
    anchors, actual = [a.numpy().astype(np.longdouble) for a in anchors], actual.numpy().astype(np.longdouble)
    length = np.linalg.norm(actual, axis=-1, keepdims=True)
    losses = []
    for row in weights.tolist():
        guess = sum(weight * anchor for weight, anchor in zip(row, anchors, strict=True))
        if distance == "l2":
            losses.append(np.linalg.norm(guess - actual, axis=-1) / length[..., 0])
        else:
            direction = guess / np.linalg.norm(guess, axis=-1, keepdims=True)
            losses.append(np.square(direction - actual / length).sum(axis=-1) / 2)
    return np.stack(losses, axis=-1)


def test_predictions_of_any_size_and_direction():
    """Opposite, a hundred million times too large or too small, and none at all."""
    actual = torch.tensor([[[3.0, 4.0, 0.0]]])
    beside = torch.tensor([[[3.0, 4.0, 5.0]]])
    weights = torch.tensor([[-1.0, 0], [1e8, 0], [1e-8, 0], [0, -1], [0, 1e8], [0, 1e-8], [0, 0]], dtype=torch.float64)
    half = 0.5**0.5  # cosine of (3, 4, 5) and (3, 4, 0)
    expected = pytest.approx([2, 0, 0, 1 + half, 1 - half, 1 - half, 1], rel=1e-6, abs=1e-30)
    assert predictor_losses([actual, beside], actual, weights)[0, 0].tolist() == expected
    scores = score([actual, beside], actual, weights)
    assert losses_of(scores)[0, 0].tolist() == expected
    # -cot|cot| of 180, 0, 0, 135, 45, 45 degrees and of none
    infinite = torch.inf
    assert scores[0, 0].tolist() == pytest.approx([infinite, -infinite, -infinite, 1, -1, -1, 0], rel=1e-6)


@each_row("count", [5, 32, 40, 41])
def test_least_is_the_first_least(count):
    generator = torch.Generator().manual_seed(count)
    losses = torch.randint(0, 6, (2, count, 50), generator=generator).float()  # many ties
    value, index = least(losses)
    assert torch.equal(value, losses.amin(dim=1))
    np.testing.assert_array_equal(index, losses.numpy().argmin(axis=1))


def test_ties_go_to_the_first_and_what_is_no_number_is_never_chosen():
    losses = torch.tensor([[[2.0, 1.0, 1.0], [0.5, 0.5, 0.5], [torch.nan, 3.0, 2.0]]])
    assert select(losses).tolist() == [[1, 0, 2]]


@each_row(("distance", "granularity"), list(product(["cosine", "l2", "l1"], ["token", "region", "step", "global"])))
def test_choosing_by_score_is_choosing_by_loss(distance, granularity):
    generator = torch.Generator().manual_seed(3)
    actual, *anchors = (torch.randn(2, 12, 5, generator=generator) for _ in range(4))
    actual[0, 5] = 0  # the first predictor, whatever the distance
    scores = score(anchors, actual, taylor_rows(), distance=distance)
    losses = predictor_losses(anchors, actual, taylor_rows(), distance=distance)
    options = {"granularity": granularity, "grid": (1, 3, 4), "region_size": 2}
    assert torch.equal(choose(scores, distance=distance, **options), select(losses, **options))


def test_granularities_by_hand():
    # two samples, a 2 x 4 grid of tokens, two predictors; predictor 1 is better by `gain`
    gain = torch.tensor([[1.0, 1, -3, 0, 1, 1, 0, 0], [-1.0, -1, -1, -1, -1, -1, -1, -1]])
    losses = torch.stack([torch.zeros_like(gain), -gain], dim=-1)
    assert select(losses).tolist() == [[1, 1, 0, 0, 1, 1, 0, 0], [0] * 8]
    assert select(losses, granularity="region", grid=(1, 2, 4), region_size=2).tolist()[0] == [1, 1, 0, 0, 1, 1, 0, 0]
    assert select(losses, granularity="step").tolist() == [[1] * 8, [0] * 8]
    assert select(losses, granularity="global").tolist() == [[0] * 8, [0] * 8]


def test_regions_do_not_cross_frames_may_be_ragged_and_need_the_grid():
    losses = torch.rand(1, 2 * 3 * 5, 4, generator=torch.Generator().manual_seed(0))
    choice = select(losses, granularity="region", grid=(2, 3, 5), region_size=2).view(2, 3, 5)
    cube = losses.view(2, 3, 5, 4)
    for f in range(2):
        for r in (0, 2):
            for c in (0, 2, 4):
                block = cube[f, r : r + 2, c : c + 2].reshape(-1, 4)
                assert (choice[f, r : r + 2, c : c + 2] == block.mean(0).argmin()).all()
    with pytest.raises(ValueError, match="token grid"):
        select(torch.rand(1, 6, 2), granularity="region", grid=(1, 2, 2))


def test_assemble_is_a_gather():
    generator = torch.Generator().manual_seed(0)
    anchors = [torch.randn(2, 5, 3, generator=generator) for _ in range(3)]
    weights = taylor_rows()
    choice = torch.randint(0, 15, (2, 5), generator=generator)
    result = assemble(anchors, weights, choice)
    for b in range(2):
        for n in range(5):
            row = weights[choice[b, n]].tolist()
            expected = sum(w * a[b, n].double() for w, a in zip(row, anchors, strict=True))
            torch.testing.assert_close(result[b, n].double(), expected, rtol=1e-5, atol=1e-5)


def test_assemble_widens_half_precision():
    anchors = [torch.ones(1, 1, 2, dtype=torch.bfloat16), torch.zeros(1, 1, 2, dtype=torch.bfloat16)]
    result = assemble(
        anchors, torch.tensor([[1.001, -0.001]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.long)
    )
    assert result.dtype == torch.float32
    assert result[0, 0, 0].item() == pytest.approx(1.001, rel=1e-6)
