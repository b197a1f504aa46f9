"""Run heterogeneous step allocation: tokens whose velocity changes little run at every few steps only."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.checks import check_between, check_integer
from tapstudy.policies.base import CachePolicy, Prediction, ResidualSite, RunInfo
from tapstudy.policies.decision import SKIP, Decision


class HSAPolicy(CachePolicy):
    """Behind the dense steps every group of tokens runs at every so many-th step; the others keep their velocity.

    A token's change is the mean absolute difference of its velocity (its patch of the model output, all samples of the
    pass taken together) between the last two dense steps, over the mean absolute velocity. Those that change most are
    the first group. Tokens that run attend to the keys and values that the others last had.

    Source: arXiv 2605.06892. Approximate: neither how groups are made of changes nor their divisors are known, so
    shares and divisors are arguments; the change is that of the guidance branches, not of the guided velocity. Cost of
    a step: the share of the blocks that is due. Memory: keys and values of all blocks, and one model output.

    Args:
        divisors: of every group, from the one that changes most: it runs at every so many-th step.
        shares: of every group in the tokens; they add up to 1. None: equal ones.
        dense: the first so many steps run in full.

    Raises:
        TypeError, ValueError: settings out of range, or that do not fit together.
    """

    runs_tokens = True
    residual_site: ResidualSite = "output"

    def __init__(
        self, divisors: Sequence[int] = (1, 2, 4), shares: Sequence[float] | None = None, *, dense: int = 4
    ) -> None:
        for divisor in divisors:
            check_integer("HSAPolicy: divisors", divisor, 1)
        shares = [1 / len(divisors)] * len(divisors) if shares is None and divisors else shares or ()
        for share in shares:
            check_between("HSAPolicy: shares", share, 0, 1)
        if len(shares) != len(divisors) or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"HSAPolicy: shares must add up to 1, one for each of the {len(divisors)} divisors, got {tuple(shares)}"
            )
        check_integer("HSAPolicy: dense", dense, 2)
        super().__init__(Anchors(1))
        self.divisors, self.shares, self.dense = tuple(divisors), tuple(shares), dense
        self._output: Tensor | None = None
        self._order: Tensor | None = None  # tokens by falling change, (token,)
        self._groups: list[tuple[int, int, int]] = []  # divisor, and where it begins and ends in the order

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self._output, self._order, self._groups = None, None, []

    def wants_full(self, step: int) -> bool:
        return step < self.dense or self._order is None or len(self._due(step)) == len(self._groups)

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        assert self._order is not None
        due = [self._order[start:end] for _, start, end in self._due(step)]
        return Decision(tokens=torch.cat(due).sort().values) if due else SKIP

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        if self._output is not None and (step < self.dense or self._order is None):
            change, before = (residual - self._output).abs().float(), self._output.abs().float()
            relative = change.mean(dim=(0, 2)) / before.mean(dim=(0, 2)).clamp_min(1e-12)  # (token,)
            self._order = relative.argsort(descending=True, stable=True)
            ends = [round(share * len(relative)) for share in accumulate(self.shares)]
            groups = zip(self.divisors, [0, *ends], ends, strict=False)
            self._groups = [group for group in groups if group[1] < group[2]]
        self._output = residual.clone()

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert self._output is not None
        return Prediction(self._output)

    def ran(self, step: int, decision: Decision, residual: Tensor | None) -> None:
        assert residual is not None
        self._output = residual.clone()

    def _due(self, step: int) -> list[tuple[int, int, int]]:
        """Return the groups that run: their steps are counted from the last dense one."""
        return [group for group in self._groups if (step - self.dense + 1) % group[0] == 0]

    @property
    def cache_bytes(self) -> int:
        return 0 if self._output is None else self._output.nbytes
