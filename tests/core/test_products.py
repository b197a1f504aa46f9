"""Products of anchors that are kept between full steps, against all pairs computed anew."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy.core.losses import Workspace
from tapstudy.core.products import AnchorWorkspace, all_products
from tapstudy.core.scoring import predictor_losses, select
from tapstudy.core.weights import extrapolation_row
from tests.core.test_scoring import extended


def steps(seed, closeness, *, count=5, dtype=torch.float32):
    """Anchors and what came after them, (1, 30, 24) each."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(1, 30, 24, generator=generator)
    values = [(base + closeness * torch.randn(base.shape, generator=generator)).to(dtype) for _ in range(3 + count)]
    return values[:3], values[3:]


def rows_of(anchors, actual):
    return [value.flatten(0, 1) for value in (actual, *anchors[1:], anchors[0])]


def check_products(workspace, anchors, actual):
    """Those of the workspace are those of all pairs computed anew."""
    rows = rows_of(anchors, actual)
    expected = all_products(rows, torch.float64, Workspace())
    torch.testing.assert_close(workspace.products(rows, torch.float64), expected, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_products_equal_all_pairs(count, dtype):
    anchors, later = steps(0, 1e-2, dtype=dtype)
    workspace = AnchorWorkspace()
    for actual in later:
        check_products(workspace, anchors[:count], actual)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from(["cosine", "l2"]),
    closeness=st.sampled_from([1e-6, 1e-5, 1e-4, 1e-2, 1.0]),
    scale=st.sampled_from([1e-8, 1.0, 1e8]),
)
def test_choices_from_kept_products_obey_the_rule(seed, distance, closeness, scale):
    """The winner is that of extended precision unless the two best differ by less than 1e-6 relative."""
    anchors, later = steps(seed, closeness, count=3)
    anchors, later = [scale * a for a in anchors], [scale * a for a in later]
    weights = torch.tensor(
        [extrapolation_row((18, 10, 2), m, 5 - s) for m in (0, 1, 2) for s in range(5)], dtype=torch.float64
    )
    workspace = AnchorWorkspace()
    for actual in later:
        losses = predictor_losses(anchors, actual, weights, distance=distance, workspace=workspace)[0]
        truth = extended([a[0] for a in anchors], actual[0], weights, distance)
        np.testing.assert_allclose(losses.double().numpy(), truth.astype(float), rtol=2e-6, atol=1e-30)
        taken = np.take_along_axis(truth, select(losses[None])[0].numpy()[:, None], axis=-1)[:, 0]
        assert (taken <= truth.min(axis=-1) * (1 + 1e-6)).all()


def test_tokens_much_smaller_than_the_anchor_keep_their_precision():
    anchors, (first, second, third, *_) = steps(1, 1e-2)
    second[0, 3] *= 1e-9
    second[0, 4] = 0
    workspace = AnchorWorkspace()
    for actual in (first, second, third):
        check_products(workspace, anchors, actual)


def test_an_anchor_much_smaller_than_the_tokens_keeps_its_precision():
    anchors, later = steps(3, 1e-2)
    anchors[0][0, 3] *= 1e-9
    workspace = AnchorWorkspace()
    for actual in later:
        check_products(workspace, anchors, actual)
    assert workspace.known is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_products_of_the_anchors_are_learned_from_those_of_the_first_step(count):
    anchors, (actual, *_) = steps(4, 1e-3)
    workspace = AnchorWorkspace()
    workspace.products(rows_of(anchors[:count], actual), torch.float64)
    newest, *others = (anchor.flatten(0, 1).double() for anchor in anchors[:count])
    vectors = [newest, *(other - newest for other in others)]
    expected = torch.stack([(vectors[i] * vectors[j]).sum(-1) for i in range(count) for j in range(i, count)])
    torch.testing.assert_close(workspace.known, expected, rtol=1e-9, atol=1e-13)
    assert AnchorWorkspace().known is None


def test_other_anchors_must_be_announced():
    anchors, later = steps(2, 1.0)
    workspace = AnchorWorkspace()
    workspace.products(rows_of(anchors, later[0]), torch.float64)
    workspace.anchors_changed()
    check_products(workspace, [later[0], *anchors[:2]], later[1])
