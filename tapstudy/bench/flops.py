"""FLOPs of a pipeline call. Convention: one multiply-add is two FLOPs; matrix products, convolutions and attention
count, element-wise work does not (torch's own counter)."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> int:
    """FLOPs of everything `run` computes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
