"""Which steps run in full.

S(N, w) is the schedule of TaylorSeer and TAP: steps 0..w-1, then w-1+N, w-1+2N, ... For T = 50 and w = 3 it has
14, 10 and 8 full steps at N = 4, 6, 8: the published FLOPs ratios 3.57, 4.98 and 6.24.
"""

from __future__ import annotations

from collections.abc import Collection


def is_full_step(step: int, *, interval: int, warmup_steps: int) -> bool:
    """Tell whether `step` (0-based, in sampling order) belongs to S(interval, warmup_steps)."""
    return step < warmup_steps or (step - (warmup_steps - 1)) % interval == 0


def full_steps(num_steps: int, *, interval: int, warmup_steps: int, cooldown_steps: int = 0) -> tuple[int, ...]:
    """S(interval, warmup_steps) below `num_steps`, plus the last `cooldown_steps` steps."""
    return tuple(
        step
        for step in range(num_steps)
        if step >= num_steps - cooldown_steps or is_full_step(step, interval=interval, warmup_steps=warmup_steps)
    )


def mask_text(full: Collection[int], num_steps: int) -> str:
    """Return a mask one can read: `F` for a full step, `.` for a skip step."""
    return "".join("F" if step in full else "." for step in range(num_steps))
