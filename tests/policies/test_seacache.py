"""SeaCache: its filter beside diffusers', its rule by hand."""

import pytest
import torch

from tapstudy.policies.base import RunInfo
from tapstudy.policies.seacache import SeaCachePolicy, sea_filtered
from tests.policies.loop import drive, tokens
from tests.table import each_row


@each_row(("grid", "sigma"), [((1, 4, 6), 0.0), ((3, 4, 5), 0.3), ((1, 4, 6), 0.95), ((3, 4, 5), 1.0)])
def test_the_filter_is_diffusers(grid, sigma):
    sea_cache = pytest.importorskip("diffusers.hooks.sea_cache")
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(*grid, 2, generator=generator)  # (frame, row, column, channel)
    expected = sea_cache._apply_sea_filter(image, sigma=sigma, power_exp=3.0)
    found = sea_filtered(image.flatten(0, 2)[None], grid, sigma)
    torch.testing.assert_close(found[0].reshape(image.shape), expected, rtol=1e-4, atol=1e-5)


def test_the_rule_by_hand():
    """Constant images pass the filter up to a factor, so that each of these steps changes by a tenth."""
    probes = [tokens(100 * 1.1**step).float() for step in range(8)]
    residuals = [tokens(float(step**2)) for step in range(8)]
    sigmas = [0.5] * 8

    def mask(threshold, **settings):
        return drive(SeaCachePolicy(sigmas, threshold, **settings), probes, residuals)

    assert mask(0.05)[0] == "FFFFFFFF"
    assert mask(0.15)[0] == "F.F.F.F."
    found, predictions = mask(0.25)
    assert found == "F..F..F."
    assert mask(9.0)[0] == "F..F..F."  # no more than two in a row
    assert mask(9.0, max_skips=None, warmup_steps=3)[0] == "FFF....."
    assert float(predictions[2].residual) == 0
    assert float(predictions[5].residual) == 9 + 2 * (9 - 0) / 3
    assert float(mask(0.25, order=0)[1][5].residual) == 9
    with pytest.raises(ValueError, match="noise levels for 8 steps"):
        SeaCachePolicy(sigmas).begin(RunInfo(9))
