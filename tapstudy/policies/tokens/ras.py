"""Run region-adaptive sampling: regions that move most run at every step, the others now and then."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.core.checks import check_between, check_integer
from tapstudy.policies.base import CachePolicy, Prediction, ResidualSite, RunInfo
from tapstudy.policies.decision import Decision


class RASPolicy(CachePolicy):
    """Between dense steps only some tokens run; the others keep the model output that they had.

    After every step a token's metric is the standard deviation of its output (its patch of velocity, all samples of the
    pass taken together), and its score exp(starvation * steps since it ran) / metric: flat regions are those in focus,
    as a model's output is the noise less the image. The tokens of the largest scores run at the next step.

    Source: arXiv 2502.10389 and its released code, in the form in which starvation helps tokens that were left out.
    (With its `high_ratio` of 1 that code leaves out the largest instead, see `inverse`.) Approximate: the deviation is
    over the whole patch and over guidance branches, and is not of the guided output. Cost of a step: the share of the
    blocks. Memory: keys and values of all blocks, and one model output.

    Args:
        share: of the tokens that run.
        dense: the first so many steps run in full.
        resets: shares of the run at which a step runs in full.
        starvation: how fast tokens that are left out come back.
        inverse: score by the metric instead of one over it.

    Raises:
        TypeError, ValueError: settings out of range.
    """

    runs_tokens = True
    residual_site: ResidualSite = "output"

    def __init__(
        self,
        share: float = 0.5,
        *,
        dense: int = 4,
        resets: tuple[float, ...] = (0.4, 0.75),
        starvation: float = 0.1,
        inverse: bool = False,
    ) -> None:
        check_between("RASPolicy: share", share, 0, 1)
        check_integer("RASPolicy: dense", dense, 1)
        for reset in resets:
            check_between("RASPolicy: resets", reset, 0, 1)
        super().__init__(Anchors(1))
        self.share, self.dense, self.resets = share, dense, resets
        self.starvation, self.inverse = starvation, inverse
        self._output: Tensor | None = None
        self._left = torch.zeros(0)  # steps since each token ran, (token,)

    def begin(self, run: RunInfo) -> None:
        super().begin(run)
        self._output = None

    def wants_full(self, step: int) -> bool:
        steps = self.run.num_steps
        return self._output is None or step < self.dense or step in [int(r * (steps or 0)) for r in self.resets]

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        return Decision(tokens=self._scores().topk(self._count()).indices.sort().values)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self._output = residual.clone()
        self._left = torch.zeros(residual.shape[1], device=residual.device)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert self._output is not None
        return Prediction(self._output)

    def ran(self, step: int, decision: Decision, residual: Tensor | None) -> None:
        assert residual is not None
        assert decision.tokens is not None
        self._output = residual.clone()
        self._left = (self._left + 1).index_fill(0, decision.tokens.to(residual.device), 0)

    def _count(self) -> int:
        assert self._output is not None
        return max(1, round(self.share * self._output.shape[1]))

    def _scores(self) -> Tensor:
        assert self._output is not None
        metric = self._output.float().std(dim=-1).mean(dim=0)  # (N,)
        metric = metric if self.inverse else 1 / metric.clamp_min(1e-12)
        return metric * torch.exp(self.starvation * self._left)

    @property
    def cache_bytes(self) -> int:
        return 0 if self._output is None else self._output.nbytes
