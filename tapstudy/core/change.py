"""Measure how much features changed, as one number: what adaptive caches decide by."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.scoring import wide_dtype


def relative_change(now: Tensor, before: Tensor) -> Tensor:
    """Compute mean |now - before| / mean |before| over all entries (batch, token, channel): one number, on the device.

    From nothing (all zeros) to something is an infinite change, to nothing none. In float64 where the device has it.
    """
    wide = torch.promote_types(now.dtype, torch.float32)
    now, before = now.detach().to(wide), before.detach().to(wide)
    change, size = ((now - before).abs().mean(), before.abs().mean())
    change, size = (value.to(wide_dtype(value.device)) for value in (change, size))
    return torch.where(change == 0, change, change / size)
