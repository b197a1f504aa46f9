"""Constants are sent to a device once, and go when they are gone."""

import torch
from torch import Tensor

from tapstudy.core import resident as module
from tapstudy.core.resident import resident

META = torch.device("meta")


def test_one_copy_for_every_device_and_use():
    constant = torch.arange(3.0)
    copy = resident(constant, META)
    assert copy.device == META
    assert resident(constant, META) is copy
    assert resident(constant, META, Tensor.double) is not copy
    assert resident(constant, META, Tensor.double).dtype == torch.float64
    assert resident(constant.clone(), META) is not copy


def test_a_constant_at_home_is_no_copy():
    constant = torch.arange(3.0)
    assert resident(constant, constant.device).data_ptr() == constant.data_ptr()
    assert constant not in module._COPIES


def test_copies_go_with_the_constant():
    before = len(module._COPIES)
    for _ in range(20):
        resident(torch.arange(3.0), META)
    assert len(module._COPIES) == before


def test_made_in_inference_mode_it_serves_outside():
    constant, leaf = torch.arange(3.0), torch.ones(3, requires_grad=True, device=META)
    with torch.inference_mode():
        copy = resident(constant, META)
    assert not copy.is_inference()
    (leaf * copy).sum().backward()
    assert leaf.grad.shape == (3,)
