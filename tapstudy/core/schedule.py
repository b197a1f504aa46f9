"""Decide which steps run in full.

S(N, w) is the schedule of TaylorSeer and TAP: steps 0..w-1, then w-1+N, w-1+2N, ... For T = 50 and w = 3 it has
14, 10 and 8 full steps at N = 4, 6, 8: the published FLOPs ratios 3.57, 4.98 and 6.24.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tapstudy.core.checks import check_integer, unique


@dataclass(frozen=True)
class Schedule:
    """Run S(interval, warmup_steps) in full, or explicit full steps, and the last steps.

    Args:
        interval: N; a full step, then N - 1 skip steps. 1 never skips.
        warmup_steps: w; the first w steps run in full.
        cooldown_steps: the last so many steps run in full.
        full_steps: in place of `interval` and `warmup_steps`; must hold step 0. They are sorted.

    Raises:
        TypeError, ValueError: no integers, too small or repeated, or full steps without step 0.
    """

    interval: int = 8
    warmup_steps: int = 3
    cooldown_steps: int = 0
    full_steps: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, least in (("interval", 1), ("warmup_steps", 1), ("cooldown_steps", 0)):
            check_integer(name, getattr(self, name), least)
        if self.full_steps is not None:
            for step in (steps := unique("full_steps", self.full_steps)):
                check_integer("full_steps", step, 0)
            if 0 not in steps:
                raise ValueError(f"full_steps must hold step 0 (there is no history before it), got {steps}")
            object.__setattr__(self, "full_steps", tuple(sorted(steps)))

    def is_full(self, step: int, num_steps: int | None = None) -> bool:
        """Tell whether `step` (0-based, in sampling order) of a run runs in full.

        Args:
            num_steps: of the run; None if nobody knows, then there is no cooldown.
        """
        if num_steps is not None and step >= num_steps - self.cooldown_steps:
            return True
        if self.full_steps is not None:
            return step in self.full_steps
        return step < self.warmup_steps or (step - (self.warmup_steps - 1)) % self.interval == 0

    def steps(self, num_steps: int) -> tuple[int, ...]:
        """List the full steps of a run."""
        return tuple(step for step in range(num_steps) if self.is_full(step, num_steps))


def mask_text(full: Collection[int], num_steps: int) -> str:
    """Write a mask that one can read: `F` for a full step, `.` for a skip step."""
    return "".join("F" if step in full else "." for step in range(num_steps))
