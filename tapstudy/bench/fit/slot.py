"""Where the comparison runs a method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tapstudy.bench.engine import Setting
from tapstudy.bench.fit.held_out import HeldOut
from tapstudy.policies.config import TAPConfig


@dataclass(frozen=True)
class Slot:
    """Hold a schedule with so many full passes, and what a method may be fitted to.

    Attributes:
        held_out: what may be fitted and chosen on.
        passes: number of full passes.
        schedule: its name.
        config: with the schedule and all else at its default.
    """

    held_out: HeldOut
    passes: int
    schedule: str
    config: TAPConfig

    @property
    def mask(self) -> tuple[int, ...]:
        """Return the full steps."""
        return self.held_out.mask(self.schedule, self.passes)

    @property
    def steps(self) -> int:
        """Return T."""
        return self.held_out.plan.steps

    def threshold(self, name: str, make: Callable[[float], Setting], *, low: float = 1e-4) -> float:
        """Return the one at which the tuning images take `passes` full passes, about."""
        return self.held_out.threshold(name, make, self.passes, low=low)

    @property
    def name(self) -> str:
        """Return for files."""
        return f"{self.schedule}-{self.passes}"
