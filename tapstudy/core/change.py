"""Measure how much features changed, as one number: what adaptive caches decide by."""

from __future__ import annotations

import torch
from torch import Tensor


def relative_change(now: Tensor, before: Tensor) -> float:
    """Compute mean |now - before| / mean |before| over all entries (batch, token, channel). Waits for the device.

    From nothing (all zeros) to something is an infinite change, to nothing none.
    """
    wide = torch.promote_types(now.dtype, torch.float32)
    now, before = now.detach().to(wide), before.detach().to(wide)
    change, size = torch.stack([(now - before).abs().mean(), before.abs().mean()]).tolist()
    if size == 0:
        return 0.0 if change == 0 else float("inf")
    return change / size
