"""Taking image tokens out of a sequence and putting them back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tapstudy
from tapstudy.instrument.tokens import ImageTokens, add_into
from tapstudy.policies.base import Prediction
from tests.instrument.replay import Replay
from tests.instrument.tiny_models import make

starts = st.integers(0, 3) | st.lists(st.integers(0, 3), min_size=2, max_size=2)


@given(start=starts, after=st.integers(0, 2), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_put_and_take(start, after, dtype):
    """Token by token, and the sequence that was given is left alone."""
    firsts = [start, start] if isinstance(start, int) else start
    sequence = torch.arange(2 * (7 + after) * 3, dtype=dtype).view(2, -1, 3)
    before, image = sequence.clone(), 0.1 + torch.arange(24.0).view(2, 4, 3)
    tokens = ImageTokens(4, start)
    result = tokens.put(sequence, image)
    assert torch.equal(sequence, before)
    assert result.dtype == dtype
    assert torch.equal(tokens.take(result), image.to(dtype))
    for b, first in enumerate(firsts):
        assert torch.equal(tokens.take(sequence)[b], before[b, first : first + 4])
        for n in {*range(sequence.shape[1])} - {*range(first, first + 4)}:
            assert torch.equal(result[b, n], before[b, n])


def test_a_whole_sequence_is_not_copied():
    image = torch.ones(2, 4, 3)
    assert ImageTokens(4).put(torch.zeros(2, 4, 3), image) is image


def test_put_keeps_gradients():
    sequence, image = torch.ones(2, 6, 3, requires_grad=True), torch.ones(2, 4, 3, requires_grad=True)
    ImageTokens(4, [1, 2]).put(sequence, image).sum().backward()
    assert sequence.grad.sum() == 2 * 2 * 3
    assert image.grad.sum() == image.numel()


def test_add_into_is_the_sum():
    for mine, other, in_place in (
        (torch.float32, torch.float32, True),
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, False),
        (torch.bfloat16, torch.float16, False),
    ):
        left, right = torch.randn(2, 3).to(mine), torch.randn(2, 3).to(other)
        expected = right + left
        found = add_into(left, right)
        assert torch.equal(found, expected)
        assert found.dtype == expected.dtype
        assert (found is left) == in_place


class Given(Replay):
    """Says of every prediction whether it may be overwritten, and keeps it to look at."""

    disposable = False

    def predict(self, step, probe, truth=None):
        self.made.append(self.factor * self.residual)
        return Prediction(self.made[-1], disposable=self.disposable)


@pytest.mark.parametrize("name", ["DiT", "Lumina2"])
def test_only_a_disposable_prediction_that_nobody_sees_is_overwritten(name):
    outputs = []
    for disposable, listens in ((False, False), (True, False), (True, True)):
        tiny, policy = make(name), Given(factor=1.25)
        policy.disposable, made = disposable, []
        with tapstudy.apply_policy(tiny.model, policy) as handle:
            if listens:
                handle.listen(lambda event: None)
            tiny()
            (instrument,) = handle._instruments.values()
            (run,) = instrument.runs.values()
            run.policy.made = made
            outputs.append(tiny())
            kept = torch.equal(made[0], 1.25 * run.policy.residual)
        assert kept == (not disposable or listens)
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
