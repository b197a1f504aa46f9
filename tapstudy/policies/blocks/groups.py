"""Leave out groups of blocks that are known beforehand, as ProfilingDiT does with those of the background."""

from __future__ import annotations

from collections.abc import Collection
from itertools import pairwise

from tapstudy.policies.base import RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.decision import Layout, Part
from tapstudy.policies.parts import PartsPolicy
from tapstudy.predictors.family import Family


class GroupsPolicy(PartsPolicy):
    """Between full steps these groups of blocks are left out: each adds what it added at the last full step.

    With the groups that attend to the background this is ProfilingDiT (arXiv 2504.03140), whose schedule is the
    default: six full steps, and every sixth after that. Approximate: how it tells background from foreground is not
    published in full, so the groups are given. Cost of a skip step: the other blocks. Memory: a residual (of all
    streams) per group and context.

    Args:
        groups: pairs of the first block of a group and the one behind its last.
        config: the schedule; its other settings are not read.
        family: of linear predictors for what a group adds, in place of reuse.

    Raises:
        ValueError: no groups, or groups that overlap; at the beginning of a run, blocks that the model does not have.
    """

    def __init__(
        self,
        groups: tuple[tuple[int, int], ...],
        config: TAPConfig | None = None,
        *,
        family: Family | None = None,
    ) -> None:
        super().__init__(family)
        self.groups = tuple(sorted(groups))
        if not groups or any(one[1] > other[0] for one, other in pairwise(self.groups)):
            raise ValueError(f"GroupsPolicy: groups must not overlap, and there must be one, got {groups}")
        self.config = config or TAPConfig(interval=6, warmup_steps=6)

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        return tuple(part for first, end in self.groups for part in layout.groups(first, end))

    def begin(self, run: RunInfo) -> None:
        self.config.check_steps(run.num_steps)
        super().begin(run)

    def left_out(self, step: int) -> Collection[Part]:
        return () if self.config.schedule.is_full(step, self.run.num_steps) else self.watched
