"""Matrix products in bf16."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def bf16_products(device: str, *, enabled: bool = True) -> Iterator[None]:
    """Run matrix products in bf16 on a type of device, the weights staying as they are."""
    with warnings.catch_warnings(), torch.autocast(device, dtype=torch.bfloat16, enabled=enabled):
        # norms of queries and keys keep their float32 weights: slower, not wrong
        warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")
        yield
