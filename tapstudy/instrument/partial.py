"""Layers computed by less work than their own forward: patches as one matrix product, and the first rows of a product.

Both give what the layer gives up to rounding. They answer None, and the layer runs itself, wherever something else has
a hand in it: a subclass (quantised, adapted, fused), a forward that hooks have replaced (offloading, casting), weights
that are no plain parameters or wait on another device or in another dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Forward = Callable[..., Any]


def patches_by_product(module: nn.Module, forward: Forward, x: Tensor) -> Tensor | None:
    """What a convolution gives whose windows do not overlap, with the channels of a token next to each other in memory.

    Args:
        module: two- or three-dimensional, stride equal to kernel, no padding, no dilation, one group; else None.
        forward: the one that the module would run.
        x: (batch, channel, *space), every extent a multiple of the kernel's.

    Returns:
        (batch, width, *grid), a view of (batch, *grid, width).
    """
    if type(module) not in (nn.Conv2d, nn.Conv3d) or not _is_plain(module, forward, x):
        return None
    assert isinstance(module, nn.Conv2d | nn.Conv3d)
    kernel, space = module.kernel_size, x.shape[2:]
    apart = kernel == module.stride and module.groups == 1 and {*module.dilation} == {1}
    padded = module.padding != "valid" and any(module.padding)
    if not apart or padded or len(space) != len(kernel) or any(n % k for n, k in zip(space, kernel, strict=True)):
        return None
    # convolutions in float32 may run in a shorter format on an accelerator (TF32), where products do not
    if x.device.type != "cpu" and x.dtype == torch.float32:
        return None
    grid = [n // k for n, k in zip(space, kernel, strict=True)]
    sides = [side for pair in zip(grid, kernel, strict=True) for side in pair]  # rows of patches, rows in one, ...
    outer = [2 + 2 * axis for axis in range(len(grid))]
    patches = x.reshape(*x.shape[:2], *sides).permute(0, *outer, 1, *(axis + 1 for axis in outer))  # (B, *G, C, *K)
    # in one piece also where patches are single pixels: else the bias is added to a product that is already rounded
    patches = patches.reshape(len(x), *grid, x.shape[1] * prod(kernel)).contiguous()  # (B, *G, C K)
    return functional.linear(patches, module.weight.flatten(1), module.bias).movedim(-1, 1)  # (B, D, *G)


def leading_product(module: nn.Module, forward: Forward, x: Tensor, *, share: tuple[int, int], fill: float) -> Any:
    """The first parts of what a linear layer gives; the other parts hold `fill`.

    Args:
        module: linear, with outputs that divide into that many parts; else None.
        forward: the one that the module would run.
        x: (..., features).
        share: how many parts are computed, and how many there are.

    Returns:
        (..., outputs)
    """
    computed, parts = share
    if type(module) is not nn.Linear or module.out_features % parts or not _is_plain(module, forward, x):
        return None
    rows = module.out_features // parts * computed
    bias = None if module.bias is None else module.bias[:rows]
    leading = functional.linear(x, module.weight[:rows], bias)  # (..., R)
    return functional.pad(leading, (0, module.out_features - rows), value=fill)


def _is_plain(module: nn.Module, forward: Forward, x: Any) -> bool:
    """Whether the module would run its class's own forward, on weights that are ready for the input."""
    if getattr(forward, "__func__", None) is not type(module).forward or not isinstance(x, Tensor):
        return False
    weights = [weight for weight in (module.weight, module.bias) if weight is not None]
    return x.is_floating_point() and all(
        type(weight) is nn.Parameter and weight.device == x.device and weight.dtype == x.dtype for weight in weights
    )
