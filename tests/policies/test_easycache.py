"""EasyCache against its formula, with numbers by hand."""

import pytest
import torch

from tapstudy.policies.easycache import EasyCachePolicy
from tests.policies.loop import drive, tokens


def test_easycache_by_hand():
    """Inputs x move by 1 a step, outputs v = 3, 5, 6, 6, 6, ... are given as v - x.

    At step 1, k = |5 - 3| / 1 = 2 and |v| = 5: each step is expected to change the output by 0.4 of it. So 0.9 allows
    for steps 2 and 3. At step 4, k = |6 - 5| / 1 = 1 and |v| = 6: a sixth a step, and five steps are skipped.
    """
    inputs = [tokens(float(step)) for step in range(12)]
    outputs = [3.0, 5.0] + [6.0] * 10
    residuals = [tokens(output - step) for step, output in enumerate(outputs)]
    mask, predictions = drive(EasyCachePolicy(0.9, warmup_steps=2), inputs, residuals)
    assert mask == "FF..F.....F."
    assert float(predictions[3].residual) == 5 - 1
    assert float(predictions[9].residual) == 6 - 4
    known, _ = drive(EasyCachePolicy(0.9, warmup_steps=2), inputs, residuals, num_steps=12)
    assert known == "FF..F.....FF"
    assert drive(EasyCachePolicy(9.0, warmup_steps=5), inputs, residuals)[0] == "FFFFF......."
    # an input that does not move says nothing about the rate: the model runs
    same = [torch.ones(1, 2, 3)] * 5
    assert drive(EasyCachePolicy(0.9, warmup_steps=2), same, same)[0] == "FFFFF"
    with pytest.raises(ValueError, match="threshold must be at least 0"):
        EasyCachePolicy(-1)
