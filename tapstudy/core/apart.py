"""Compute beside a model: in the precision that the arithmetic is written in, and outside of the model's graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST = ("cpu", "cuda", "mps", "xpu", "hpu")


@contextmanager
def apart() -> Iterator[None]:
    """Compute without autocast and without gradients, on tensors that any later step may use. Also a decorator.

    Whatever mode the model is called in, what is computed here is the same, and a constant to the model: autocast would
    run products in half precision, a gradient would keep the model's activations alive, and what is made in inference
    mode could not be written to, or be part of a graph, outside of it.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))  # which turns gradients on
        stack.enter_context(torch.no_grad())
        for device in filter(torch.is_autocast_enabled, _AUTOCAST):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield
