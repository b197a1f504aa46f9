"""Run Delta-DiT: a group of blocks is replaced by what it last added, at the back first and at the front later."""

from __future__ import annotations

from collections.abc import Collection

from tapstudy.core.checks import check_between, check_integer
from tapstudy.policies.base import RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.decision import Layout, Part
from tapstudy.policies.parts import PartsPolicy
from tapstudy.predictors.family import Family


class DeltaDiTPolicy(PartsPolicy):
    """Between full steps the last `group` blocks are left out while the outline is drawn, then the first ones.

    A group that is left out adds what it added at the last full step. Steps in which a share of more than
    `detail` of the run is left belong to the outline.

    Source: arXiv 2406.01125. Approximate: its group sizes and its boundary are published for few models. Cost of a
    skip step: L - group of L blocks. Memory: two residuals (of all streams) per context.

    Args:
        config: the schedule; its other settings are not read.
        group: number of blocks; None: half of them.
        detail: share of the steps, the last ones, in which the first blocks are left out; 0: never, 1: always.
        family: of linear predictors for what the group adds, in place of reuse.

    Raises:
        ValueError: settings out of range; at the beginning of a run, a group as large as the model, or a number of
            steps that nobody knows.
    """

    def __init__(
        self,
        config: TAPConfig | None = None,
        *,
        group: int | None = None,
        detail: float = 0.5,
        family: Family | None = None,
    ) -> None:
        if group is not None:
            check_integer("DeltaDiTPolicy: group", group, 1)
        check_between("DeltaDiTPolicy: detail", detail, 0, 1)
        super().__init__(family)
        self.config, self.group, self.detail = config or TAPConfig(), group, detail

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        return tuple(dict.fromkeys((*self._front(layout), *self._back(layout))))

    def begin(self, run: RunInfo) -> None:
        self.config.check_steps(run.num_steps)
        if run.num_steps is None and 0 < self.detail < 1:
            raise ValueError(
                "DeltaDiTPolicy needs the number of sampling steps, which a bare transformer does not tell: apply it "
                "to the pipeline, or set detail to 0 or 1"
            )
        super().begin(run)

    def left_out(self, step: int) -> Collection[Part]:
        run = self.run
        if self.config.schedule.is_full(step, run.num_steps) or run.layout is None:
            return ()
        steps = run.num_steps or 1
        late = self.detail == 1 or (self.detail > 0 and steps - step <= self.detail * steps)
        return self._front(run.layout) if late else self._back(run.layout)

    def _size(self, layout: Layout) -> int:
        size = len(layout) // 2 if self.group is None else self.group
        if not 0 < size < len(layout):
            raise ValueError(f"DeltaDiTPolicy: group must be from 1 to {len(layout) - 1} in this model, got {size}")
        return size

    def _front(self, layout: Layout) -> tuple[Part, ...]:
        return layout.groups(0, self._size(layout))

    def _back(self, layout: Layout) -> tuple[Part, ...]:
        return layout.groups(len(layout) - self._size(layout), len(layout))
