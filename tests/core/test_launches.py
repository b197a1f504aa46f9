"""What a skip step asks of an accelerator, counted at the size of real models: see `launches`."""

from importlib.util import find_spec

import pytest
import torch

from tapstudy.core.fused import MOST_ANCHORS, MOST_CHANNELS
from tapstudy.core.scoring import assemble, score, tap_step
from tests.core.launches import FLUX, HUNYUAN, META, Anchors, Size, Work, skip_step, unavoidable, weights_of
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
    anchors, weights = Anchors(Size(8, 16), MOST_ANCHORS + 1), torch.ones(2, MOST_ANCHORS + 1, dtype=torch.float64)
    with Work() as work:
        tap_step(anchors.probes, anchors.probes[0], anchors, weights, fused=True)
    assert not {"rank", "assemble"} & work.launches.keys()


@needs_triton
def test_tensors_that_do_not_fit_together_never_reach_a_kernel():
    anchors, weights = Anchors(Size(8, 16)), weights_of(Size(8, 16))
    longer, choice = Anchors(Size(9, 16)), torch.zeros(1, 9, dtype=torch.int64, device=META)
    with pytest.raises(RuntimeError, match=r"size|broadcast"):
        score(anchors.probes, longer.probes[0], weights, fused=True)
    with pytest.raises(RuntimeError, match=r"size|broadcast"):
        assemble(anchors.residuals, weights, choice, fused=True)
    with pytest.raises(RuntimeError, match=r"size|broadcast"):
        score(anchors.probes, anchors.probes[0], weights[:, :2], fused=True)


@needs_triton
def test_tokens_that_choose_together_are_scored_by_the_kernel():
    work = skip_step(FLUX, fused=True, granularity="global")
    assert {"rank", "assemble"} <= work.launches.keys()
    assert work.moved <= 1.3 * unavoidable(FLUX)
