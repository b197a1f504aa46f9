"""What a skip step asks of an accelerator, counted at the size of real models: see `launches`."""

from importlib.util import find_spec

import pytest
import torch

from tapstudy.core.fused import MOST_CHANNELS
from tests.core.launches import FLUX, HUNYUAN, Size, skip_step, unavoidable
from tests.table import each_row

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="no triton")


@each_row("distance", ["cosine", "l2", "l1"])
def test_no_copy_no_float64_and_no_matrix_product(distance):
    """Of these, the first would wait, the second crawl, and the third may round to 10 bits (TF32)."""
    work = skip_step(FLUX, fused=False, distance=distance)
    assert work.copies == 0
    assert work.wide == 0
    assert not {"mm", "bmm", "addmm", "baddbmm", "mv"} & work.launches.keys()


def test_budget_of_the_pytorch_path():
    work = skip_step(FLUX, fused=False)
    assert work.launches.total() <= 46
    assert work.moved <= 10 * unavoidable(FLUX)
    assert skip_step(HUNYUAN, fused=False).launches.total() <= 320


@needs_triton
@each_row("distance", ["cosine", "l2", "l1"])
def test_two_kernels_touch_everything_once(distance):
    for size in (FLUX, HUNYUAN, Size(4096, predictors=150), Size(1024, residual=torch.bfloat16)):
        work = skip_step(size, fused=True, distance=distance)
        assert work.launches == {"rank": 1, "assemble": 1}
        assert work.copies == 0
        assert work.moved <= 1.05 * unavoidable(size)


@needs_triton
def test_the_rest_falls_back():
    for size in (Size(8, MOST_CHANNELS + 1), Size(8, 16, probe=torch.float64)):
        assert "rank" not in skip_step(size, fused=True).launches
    assert "assemble" not in skip_step(Size(8, 16, residual=torch.float64), fused=True).launches


@needs_triton
def test_tokens_that_choose_together_are_scored_by_the_kernel():
    work = skip_step(FLUX, fused=True, granularity="global")
    assert {"rank", "assemble"} <= work.launches.keys()
    assert work.moved <= 1.3 * unavoidable(FLUX)
