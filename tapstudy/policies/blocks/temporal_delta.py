"""Run a temporal delta cache: a block whose last two residuals are alike is left out (arXiv 2603.18742)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor

from tapstudy.core.checks import check_integer, check_least
from tapstudy.policies.base import RunInfo
from tapstudy.policies.decision import Decision, Layout, Part, Value
from tapstudy.policies.parts import PartsPolicy


class TemporalDeltaPolicy(PartsPolicy):
    """Leave out a block while its residual is expected to stay, as it did between the last two steps at which it ran.

    With e the relative change mean |r - r'| / mean |r'| between these, a block that is left out adds e to its error; it
    runs again when that would exceed `threshold`, or after `max_skips` steps.

    Source: the cache of 6Bit-Diffusion, without its quantiser. Approximate: how the change is measured and added up,
    and the threshold, are not published in full. Cost of a step: the blocks that run. The host waits for the device
    once a step, for all blocks together. Memory: two residuals per block and context.

    Args:
        threshold: of the error that a block may add up.
        max_skips: steps in a row; 2 is published.
        warmup_steps: the first so many steps run in full; at least 2.

    Raises:
        TypeError, ValueError: settings out of range.
    """

    def __init__(self, threshold: float = 0.1, *, max_skips: int = 2, warmup_steps: int = 3) -> None:
        check_least("TemporalDeltaPolicy: threshold", threshold, 0)
        check_integer("TemporalDeltaPolicy: max_skips", max_skips, 1)
        check_integer("TemporalDeltaPolicy: warmup_steps", warmup_steps, 2)
        super().__init__()
        self.threshold, self.max_skips, self.warmup_steps = threshold, max_skips, warmup_steps
        self._forget()

    def _forget(self) -> None:
        self._seen: dict[Part, Tensor] = {}  # changes that are still on the device
        self._changes: dict[Part, float] = {}
        self._skips: Counter[Part] = Counter()

    @property
    def waits(self) -> int:
        return 1

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self._forget()

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        return tuple(part for index in range(len(layout)) for part in layout.groups(index, index + 1))

    def left_out(self, step: int) -> Collection[Part]:
        if step < self.warmup_steps:
            return ()
        return [part for part in self.watched if self._may_stay(part)]

    def _may_stay(self, part: Part) -> bool:
        skips, change = self._skips[part], self._changes.get(part, float("inf"))
        return skips < self.max_skips and (skips + 1) * change <= self.threshold

    def observe_part(self, step: int, part: Part, slot: int, value: Value) -> None:
        if self._kept.get((part, slot)):
            (image, _), (before, _) = value, self.kept(part, slot)[0][1]
            self._seen[part] = (image - before).abs().mean() / before.abs().mean()
        super().observe_part(step, part, slot, value)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self._skips.clear()
        self._read()

    def ran(self, step: int, decision: Decision, residual: Tensor | None) -> None:
        for part in self.watched:
            self._skips[part] = self._skips[part] + 1 if part in decision.parts else 0
        self._read()

    def _read(self) -> None:
        if self._seen:
            changes = torch.stack([*self._seen.values()]).tolist()
            self._changes |= dict(zip(self._seen, changes, strict=True))
            self._seen = {}
