"""Patches as one product, and the first rows of a product: equal to the layers, or left to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tapstudy.instrument.partial import leading_product, patches_by_product


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def patches(module, x):
    return patches_by_product(module, module.forward, x)


def leading(module, x, *, share=(2, 6), fill=0.0):
    return leading_product(module, module.forward, x, share=share, fill=fill)


@given(
    kernel=st.lists(st.integers(1, 3), min_size=2, max_size=3),
    grid=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
    bias=st.booleans(),
)
def test_patches_are_those_of_the_convolution(kernel, grid, batch, channels, bias):
    with torch.no_grad():
        kind = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
        module = kind(channels, 5, tuple(kernel), stride=tuple(kernel), bias=bias).double()
        x = torch.randn(batch, channels, *(n * k for n, k in zip(grid, kernel, strict=False)), dtype=torch.float64)
        torch.testing.assert_close(patches(module, x), module(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "kernel"), [(torch.float32, 2), (torch.bfloat16, 2), (torch.float16, 1)])
def test_patches_differ_by_rounding_only(dtype, kernel):
    """As close to the truth as the convolution is: the bias is added before the product is rounded."""
    torch.manual_seed(0)
    module, x = nn.Conv2d(8, 64, kernel, stride=kernel).to(dtype), torch.randn(2, 8, 16, 16).to(dtype)
    truth = nn.functional.conv2d(x.double(), module.weight.double(), module.bias.double(), stride=kernel)
    found = patches(module, x)
    assert found.dtype == dtype
    error = (found - truth).abs()
    assert error.max() / truth.abs().max() < 2 * torch.finfo(dtype).eps
    assert error.mean() < 1.05 * (module(x) - truth).abs().mean()


@pytest.mark.parametrize("module", [nn.Conv2d(4, 6, 2, stride=2), nn.Conv3d(4, 6, (1, 2, 2), stride=(1, 2, 2))])
def test_channels_of_a_token_lie_together(module):
    found = patches(module, torch.randn(2, 4, *(3, 8, 6)[3 - len(module.kernel_size) :]))
    assert found.flatten(2).transpose(1, 2).is_contiguous()


def test_padding_by_name():
    module = nn.Conv2d(4, 6, 2, stride=2, padding="valid")
    torch.testing.assert_close(patches(module, torch.ones(1, 4, 4, 4)), module(torch.ones(1, 4, 4, 4)))


class _Own(nn.Conv2d):
    pass


def wrapped(module):
    """As offloading, casting and watching hooks do."""
    forward = module.forward
    module.forward = lambda *args: 2 * forward(*args)
    return module


def no_parameter(module):
    weight = module.weight.data
    del module.weight
    module.weight = weight
    return module


def subclassed_weight(module):
    module.weight = type("Quantised", (nn.Parameter,), {})(module.weight.data)
    return module


def test_other_layers_make_their_patches_themselves():
    for module in (
        nn.Conv2d(4, 6, 2, stride=1),
        nn.Conv2d(4, 6, 2, stride=4),
        nn.Conv2d(4, 6, 2, stride=2, padding=1),
        nn.Conv2d(4, 6, 1, stride=1, padding="same"),
        nn.Conv2d(4, 6, 2, stride=2, dilation=2),
        nn.Conv2d(4, 6, 2, stride=2, groups=2),
        nn.Conv2d(4, 6, 3, stride=3),  # does not divide 8
        nn.Conv3d(4, 6, 2, stride=2),
        nn.Conv1d(4, 6, 2, stride=2),
        nn.ConvTranspose2d(4, 6, 2, stride=2),
        nn.Linear(8, 8),
        _Own(4, 6, 2, stride=2),
        nn.Conv2d(4, 6, 2, stride=2).double(),
        nn.Conv2d(4, 6, 2, stride=2).to("meta"),
        wrapped(nn.Conv2d(4, 6, 2, stride=2)),
        no_parameter(nn.Conv2d(4, 6, 2, stride=2)),
        subclassed_weight(nn.Conv2d(4, 6, 2, stride=2)),
    ):
        assert patches(module, torch.ones(1, 4, 8, 8)) is None, module


def test_a_short_format_of_float32_on_an_accelerator_is_not_mixed_with_products():
    """The meta device stands for one."""
    for dtype, works in ((torch.float32, False), (torch.bfloat16, True)):
        module = nn.Conv2d(4, 6, 2, stride=2, device="meta", dtype=dtype)
        found = patches(module, torch.empty(1, 4, 8, 8, device="meta", dtype=dtype))
        assert (found is not None) == works


@given(
    parts=st.integers(1, 9),
    read=st.integers(1, 9),
    width=st.integers(1, 8),
    batch=st.integers(1, 4),
    bias=st.booleans(),
)
def test_leading_parts_are_those_of_the_layer(parts, read, width, batch, bias):
    with torch.no_grad():
        read = min(read, parts)
        module = nn.Linear(7, parts * width, bias=bias).double()
        x = torch.randn(2, 3, 7, dtype=torch.float64)
        found = leading(module, x, share=(read, parts), fill=float("nan"))
        assert found.shape == (2, 3, parts * width)
        torch.testing.assert_close(found[..., : read * width], module(x)[..., : read * width], rtol=1e-12, atol=1e-12)
        assert found[..., read * width :].isnan().all()


def test_other_layers_run_themselves():
    for module in (
        nn.Linear(4, 10),  # not six parts
        nn.Identity(),
        nn.Bilinear(4, 4, 6),
        nn.modules.linear.NonDynamicallyQuantizableLinear(4, 12),
        nn.Linear(4, 12).double(),
        nn.Linear(4, 12).to("meta"),
        nn.utils.parametrizations.weight_norm(nn.Linear(4, 12)),
        wrapped(nn.Linear(4, 12)),
        no_parameter(nn.Linear(4, 12)),
        subclassed_weight(nn.Linear(4, 12)),
    ):
        assert leading(module, torch.ones(1, 4)) is None, module


def test_autocast_is_that_of_the_layer():
    module, x = nn.Linear(4, 12), torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = leading(module, x), module(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found[:, :4], expected[:, :4])
