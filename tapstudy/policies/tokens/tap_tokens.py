"""Run the tokens that TAP would predict worst, and predict the others as TAP does. Beyond the paper."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from tapstudy.core.checks import check_between, check_integer
from tapstudy.policies.base import RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.decision import SKIP, Decision
from tapstudy.policies.tap import TAPPolicy
from tapstudy.predictors.family import Family

Names = Literal["probe", "error", "random"]


class TAPTokensPolicy(TAPPolicy):
    """At a skip step a share of the tokens runs through all blocks, with keys and values that the others had before.

    Which, is one choice for all samples of a pass (guidance branches are samples of one): those of the largest mean
    over the samples of

    * `probe`: the least proxy loss over the family, so what TAP itself would choose by;
    * `error`: the relative error, at the last full step, of what TAP would have predicted there for the residual
      (before there is one, `random`);
    * `random`: nothing; a control of equal cost.

    The others take TAP's prediction. Anchors are of full steps only. Cost of a skip step: that of TAP, scored twice for
    `probe`, and the share of the blocks; at a full step `error` predicts, too. Memory beside TAP's: keys and values of
    all blocks.

    Args:
        share: of the tokens that run; 0 is TAP.
        names: what names them.
        every: only at every so many-th step of those that are not full; TAP at the others.
        seed: of `random`.

    Raises:
        TypeError, ValueError: a share outside [0, 1], `every` no positive integer, or something else that names tokens.
    """

    runs_tokens = True

    def __init__(
        self,
        share: float = 0.25,
        config: TAPConfig | None = None,
        *,
        names: Names = "probe",
        every: int = 1,
        seed: int = 0,
        family: Family | None = None,
    ) -> None:
        super().__init__(config, family=family)
        check_between("TAPTokensPolicy: share", share, 0, 1)
        check_integer("TAPTokensPolicy: every", every, 1)
        if names not in get_args(Names):
            raise ValueError(f"TAPTokensPolicy: names must be one of {get_args(Names)}, got {names!r}")
        self.share, self.names, self.every, self.seed = share, names, every, seed
        self.decides_by_probe = names == "probe"
        self._error: Tensor | None = None  # of every token at the last full step, (token,)

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self._error = None

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        count = self._count()
        if count == 0 or (step - self.anchors.steps[0]) % self.every:
            return SKIP
        if self.names == "probe":
            return _worst(self.losses(self.candidates(step), probe).amin(dim=-1).mean(dim=0), count)
        if self.names == "error" and self._error is not None:
            return _worst(self._error, count)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return _worst(torch.rand(self._tokens(), generator=generator), count)

    def make_room(self) -> None:
        if self.names != "error":  # which predicts the full step, too, from the whole history
            super().make_room()

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        if self.names == "error" and len(self.anchors):
            predicted = self.predict(step, probe).residual
            apart = (predicted - residual).norm(dim=-1) / residual.norm(dim=-1).clamp_min(1e-12)  # (B, N)
            self._error = apart.mean(dim=0)
        super().observe(step, probe, residual)

    def _tokens(self) -> int:
        return self.anchors.shape[1]

    def _count(self) -> int:
        return round(self.share * self._tokens())


def _worst(losses: Tensor, count: int) -> Decision:
    """Name the tokens of the largest losses, (token,)."""
    return Decision(tokens=losses.topk(count).indices.sort().values)
