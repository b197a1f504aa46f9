"""Anchors kept elsewhere: copies that are late by as much as they may be, and still come in time."""

from __future__ import annotations

import pytest
import torch

from tapstudy.core import anchors as anchors_module
from tapstudy.core.anchors import Anchors
from tapstudy.core.transfer import BlockingTransfer, StreamTransfer, Transfer, transfer_between
from tests.core.late_streams import LateStreams
from tests.table import each_row

CPU, CUDA, META = torch.device("cpu"), torch.device("cuda", 0), torch.device("meta")

AWAY = "meta"  # stands for another device


@pytest.fixture
def streams(monkeypatch):
    late = LateStreams()
    monkeypatch.setattr(
        anchors_module,
        "transfer_between",
        lambda features, kept: StreamTransfer(CPU, late) if kept.type == AWAY else Transfer(),
    )
    return late


def push(anchors, step, dtype=torch.float32):
    """From buffers that are spoiled right after, as a model may do."""
    generator = torch.Generator().manual_seed(step)
    probe, residual = (torch.randn(2, 3, 4, generator=generator).to(dtype) for _ in range(2))
    anchors.push(step, probe, residual)
    probe.fill_(torch.inf)
    residual.fill_(torch.inf)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_comes_back_is_what_was_kept(streams, dtype):
    here, away = Anchors(3), Anchors(3, device=AWAY)
    for step in (0, 1, 2, 5, 8):  # beyond the capacity, too
        for anchors in (here, away):
            push(anchors, step, dtype)
        assert away.steps == here.steps
        assert away.nbytes == here.nbytes
        for name in ("probes", "residuals", "residuals", "probes", "probes"):  # reading takes nothing away
            found, expected = getattr(away, name), getattr(here, name)
            assert len(found) == len(expected) == len(here)
            assert all(map(torch.equal, found, expected))
            assert [tensor.dtype for tensor in found] == [tensor.dtype for tensor in expected]


def test_residuals_travel_while_probes_are_read(streams):
    anchors = Anchors(2, device=AWAY)
    push(anchors, 0), push(anchors, 1)
    streams.log.clear()
    probes = anchors.probes
    assert streams.log == ["fork", "copy", "copy", "fork", "copy", "copy", "join"]  # both sent, the first waited for
    assert len(streams.waiting) == 2
    assert all(probe.isfinite().all() for probe in probes)
    residuals = anchors.residuals
    assert streams.log[-1] == "join"
    assert len(streams.log) == 8  # none is sent twice
    assert all(residual.isfinite().all() for residual in residuals)


def test_a_full_step_forgets_what_is_on_its_way(streams):
    anchors = Anchors(2, device=AWAY)
    push(anchors, 0), push(anchors, 1)
    _ = anchors.probes  # sends residuals that nobody reads: the step runs in full after all
    push(anchors, 2)
    fresh = Anchors(2)
    for step in (1, 2):
        push(fresh, step)
    assert all(map(torch.equal, anchors.residuals, fresh.residuals))


def test_every_copy_comes_after_what_was_computed(streams):
    """A fork before the copies of every transfer: their memory, or their source, may still be in use."""
    anchors = Anchors(2, device=AWAY)
    for step in range(4):
        push(anchors, step)
        _ = anchors.probes, anchors.residuals
    before = [first for first, second in zip(streams.log, streams.log[1:], strict=False) if second == "copy"]
    assert "join" not in before


def test_a_reader_owns_what_it_gets(streams):
    anchors = Anchors(1, device=AWAY)
    push(anchors, 0)
    kept = anchors.residuals[0].clone()
    anchors.residuals[0].zero_()
    assert torch.equal(anchors.residuals[0], kept)


def test_mutations_of_the_transfer_are_seen(streams, monkeypatch):
    for method in ("wait", "keep"):
        with monkeypatch.context() as patch:
            if method == "wait":
                patch.setattr(StreamTransfer, "wait", lambda self, pending: pending.tensors)
            else:
                patch.setattr(LateStreams, "mark", lambda self: 0)
            with pytest.raises(AssertionError):
                test_what_comes_back_is_what_was_kept(streams, torch.float32)


@each_row("device", [None, "cpu"])
def test_on_one_device_nothing_moves(device):
    anchors = Anchors(2, device=device)
    for step in range(3):
        push(anchors, step)
        assert anchors.residuals[0] is anchors.residuals[0]
    plain = Anchors(2)
    for step in range(3):
        push(plain, step)
    assert all(map(torch.equal, (*anchors.probes, *anchors.residuals), (*plain.probes, *plain.residuals)))


def test_which_transfer():
    assert type(transfer_between(CPU, CPU)) is Transfer
    assert type(transfer_between(CUDA, torch.device("cuda"))) is Transfer
    assert type(transfer_between(CUDA, CUDA)) is Transfer
    assert type(transfer_between(CUDA, torch.device("cuda", 1))) is BlockingTransfer
    assert type(transfer_between(META, CPU)) is BlockingTransfer


def test_between_other_devices():
    transfer = transfer_between(CPU, META)
    buffer = transfer.empty(torch.ones(2, 3), torch.bfloat16)
    assert (buffer.device, buffer.dtype, buffer.shape) == (META, torch.bfloat16, (2, 3))
    transfer = transfer_between(META, CPU)
    (found,) = transfer.wait(transfer.prefetch([torch.ones(2)]))
    assert found.device == META


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_cuda():
    generator = torch.Generator().manual_seed(0)
    here, away = Anchors(3), Anchors(3, device="cpu")
    for step in range(6):
        values = torch.randn(2, 1000, 64, generator=generator).cuda()
        for anchors in (here, away):
            probe, residual = values.bfloat16(), values.clone()
            anchors.push(step, probe, residual)
            probe.fill_(torch.nan)
            residual.fill_(torch.nan)
        assert all(map(torch.equal, (*away.probes, *away.residuals), (*here.probes, *here.residuals)))
        assert all(tensor.is_cuda for tensor in away.residuals)
    assert isinstance(away._transfer, StreamTransfer)
    assert all(tensor.is_pinned() for tensor in away._residuals)
