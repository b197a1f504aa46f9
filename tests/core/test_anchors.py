import weakref

import pytest
import torch

from tapstudy.core.anchors import Anchors


def test_keeps_the_newest_and_copies():
    anchors = Anchors(2)
    buffer = torch.zeros(1, 2, 3)
    for step in (0, 1, 5):
        buffer.fill_(step)
        anchors.push(step, buffer.bfloat16(), buffer)
    buffer.fill_(99)
    assert anchors.steps == [5, 1]
    assert [int(r[0, 0, 0]) for r in anchors.residuals] == [5, 1]
    assert [int(p[0, 0, 0]) for p in anchors.probes] == [5, 1]
    assert anchors.residuals[0].dtype == torch.float32
    assert anchors.nbytes == 2 * 6 * (4 + 2)


def test_full_history_reuses_its_memory():
    anchors = Anchors(2)
    for step in range(2):
        anchors.push(step, None, torch.zeros(1, 2, 3))
    before = {r.data_ptr() for r in anchors.residuals}
    anchors.push(2, None, torch.ones(1, 2, 3))
    assert {r.data_ptr() for r in anchors.residuals} == before
    assert anchors.residuals[0].sum() == 6
    assert anchors.residuals[1].sum() == 0


def test_room_is_that_of_the_oldest_of_a_full_history():
    anchors = Anchors(2)
    anchors.push(0, torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))
    anchors.make_room()
    assert anchors.steps == [0]
    anchors.push(1, torch.ones(1, 2, 3), torch.ones(1, 2, 3))
    assert len(anchors.probes) == 2  # and the residuals are prefetched
    oldest = [weakref.ref(anchors.probes[1].untyped_storage()), weakref.ref(anchors.residuals[1].untyped_storage())]
    anchors.make_room()
    assert [one() for one in oldest] == [None, None]
    assert anchors.nbytes == 2 * 6 * 4
    anchors.push(2, torch.full((1, 2, 3), 2.0), torch.full((1, 2, 3), 2.0))
    assert anchors.steps == [2, 1]
    assert [int(r[0, 0, 0]) for r in anchors.residuals] == [2, 1]
    assert [int(p[0, 0, 0]) for p in anchors.probes] == [2, 1]


def test_steps_must_grow():
    anchors = Anchors(3)
    anchors.push(4, None, torch.zeros(1, 1, 1))
    with pytest.raises(ValueError, match="step 4 after step 4"):
        anchors.push(4, None, torch.zeros(1, 1, 1))


def test_keeps_no_graph():
    anchors = Anchors(1)
    anchors.push(0, None, torch.ones(1, 1, 1, requires_grad=True) * 2)
    assert not anchors.residuals[0].requires_grad
