"""The Triton kernels, interpreted on the CPU: run by `test_kernels` in a process of its own, which sets
TRITON_INTERPRET before triton is imported."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tapstudy.core.coordinates import coefficients_of, coordinate_scores
from tapstudy.core.scoring import assemble, score, tap_step
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy
from tests.core.test_compiled import run
from tests.core.test_coordinates import KINDS, check_choices, hard, reference
from tests.core.test_scoring import taylor_rows

# numbers out of range are in the kernels on purpose: 0 / 0 has no direction
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|divide by zero|overflow) encountered:RuntimeWarning")


class History:
    def __init__(self, residuals):
        self.residuals = residuals


def made(seed, *shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize(
    ("distance", "count", "width", "probe", "residual"),
    [
        ("cosine", 1, 24, torch.float32, torch.float32),
        ("cosine", 2, 5, torch.float16, torch.bfloat16),
        ("cosine", 3, 24, torch.bfloat16, torch.float32),
        ("cosine", 4, 100, torch.float32, torch.bfloat16),
        ("l2", 1, 3, torch.bfloat16, torch.float16),
        ("l2", 3, 24, torch.float32, torch.float32),
        ("l2", 4, 9, torch.float16, torch.float32),
        ("l1", 1, 24, torch.float32, torch.float32),
        ("l1", 2, 7, torch.bfloat16, torch.float32),
        ("l1", 4, 24, torch.float16, torch.bfloat16),
    ],
)
def test_a_step_equals_that_of_pytorch(distance, count, width, probe, residual):
    """Batch, tokens, channels and predictors that fill no block; residuals of another width than probes."""
    anchors, actual = [made(j, 2, 3, width, dtype=probe) for j in range(count)], made(9, 2, 3, width, dtype=probe)
    history = History([made(20 + j, 2, 3, width + 2, dtype=residual) for j in range(count)])
    weights = made(50, 5, count).double()
    found, choice, scores = tap_step(anchors, actual, history, weights, distance=distance, fused=True)
    expected = coordinate_scores(anchors, actual, coefficients_of(distance)(weights), distance=distance)
    torch.testing.assert_close(scores.flatten(0, 1).T, expected, rtol=1e-5, atol=1e-6)
    if count > 1 or distance != "cosine":  # one anchor has one direction: all tie
        torch.testing.assert_close(choice.flatten(), expected.argmin(dim=0))
    assert choice.dtype == torch.int64
    torch.testing.assert_close(found, assemble(history.residuals, weights, choice, fused=False), rtol=1e-6, atol=1e-6)


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    distance=st.sampled_from(["cosine", "l2", "l1"]),
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_choices_equal_float64(seed, distance, kind, dtype):
    anchors, actual = hard(kind, seed, dtype=dtype, tokens=3)
    _, choice, _ = tap_step(anchors, actual, History(anchors), taylor_rows(), distance=distance, fused=True)
    check_choices(choice[0], reference(anchors, actual, taylor_rows(), distance))


@pytest.mark.parametrize("options", [{"granularity": "step"}, {"granularity": "region", "grid": (1, 2, 3)}])
def test_tokens_that_choose_together(options):
    anchors, actual = hard("near", 1, tokens=6)
    _, choice, _ = tap_step(anchors, actual, History(anchors), taylor_rows(), region_size=2, fused=True, **options)
    _, expected, _ = tap_step(anchors, actual, History(anchors), taylor_rows(), region_size=2, **options)
    assert torch.equal(choice, expected)


def test_channels_apart_in_memory_and_tokens_of_a_longer_sequence():
    anchors, actual = hard("near", 2, tokens=4)
    expected = score(anchors, actual, taylor_rows(), fused=True)
    padded = torch.zeros(1, 9, 24)
    padded[:, 2:6] = actual
    spread = [anchor.mT.contiguous().mT for anchor in anchors]
    assert torch.equal(score(spread, padded[:, 2:6], taylor_rows(), fused=True), expected)


def test_zeros_repetitions_and_no_numbers():
    anchors = [made(j, 1, 4, 6) for j in range(3)]
    actual = anchors[2].clone()
    actual[0, 1], actual[0, 2, 0] = 0, torch.nan
    for distance in ("cosine", "l2", "l1"):
        residual, choice, scores = tap_step(
            anchors, actual, History(anchors), torch.eye(3, dtype=torch.float64), distance=distance, fused=True
        )
        assert choice[0, [0, 3]].tolist() == [2, 2]
        assert torch.equal(residual[0, 0], anchors[2][0, 0])
        assert choice[0, 2] == 0  # as in PyTorch, where what is no number is never chosen over one that is
    assert scores[0, 1].isfinite().all()


def test_a_policy_along_a_trajectory():
    config = TAPConfig(interval=5)
    for found, expected in zip(run(TAPPolicy(config, fused=True), 6), run(TAPPolicy(config), 6), strict=True):
        assert torch.equal(found.choice, expected.choice)
        torch.testing.assert_close(found.residual, expected.residual, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.proxy_loss, expected.proxy_loss, rtol=1e-5, atol=0)
