"""Run ToCa and DuCa: attention is reused, and feed-forward layers run on the tokens that matter most."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor

from tapstudy.core.checks import check_between, check_integer
from tapstudy.policies.base import RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.decision import Decision, Layout, Part, Value
from tapstudy.policies.parts import PartsPolicy

Score = Literal["norm", "random"]


class ToCaPolicy(PartsPolicy):
    """Between full steps attention gives what it gave, and each feed-forward layer runs on a share of the tokens.

    The others keep what the layer last gave them. A token's score in a layer is the norm of what it holds there, over
    the largest, and `stale` times the steps since it ran over the interval; the best of every square of 4 x 4 tokens
    has `bonus` more. The tokens are the same in all samples of a pass. With `every` 2 this is DuCa: steps at which
    nothing runs alternate with those.

    Sources: ToCa (arXiv 2410.05317), DuCa (arXiv 2412.18911). Approximate: ToCa scores by maps of attention, which
    fused kernels do not give, and lets its share vary from layer to layer; DuCa scores by the norm of values, and finds
    chance about as good. Cost of a step between: the share of the feed-forward layers. Memory: an output of every
    attention and feed-forward layer per context.

    Args:
        share: of the tokens that run.
        config: the schedule; its other settings are not read.
        score: "norm", or "random", a control.
        every: tokens run at every so many-th of the steps between.
        stale, bonus: of the score.
        seed: of "random".

    Raises:
        TypeError, ValueError: settings out of range.
    """

    def __init__(
        self,
        share: float = 0.1,
        config: TAPConfig | None = None,
        *,
        score: Score = "norm",
        every: int = 1,
        stale: float = 0.25,
        bonus: float = 0.4,
        seed: int = 0,
    ) -> None:
        check_between("ToCaPolicy: share", share, 0, 1)
        check_integer("ToCaPolicy: every", every, 1)
        if score not in get_args(Score):
            raise ValueError(f"ToCaPolicy: score must be one of {get_args(Score)}, got {score!r}")
        super().__init__()
        self.share, self.config, self.score, self.every = share, config or TAPConfig(), score, every
        self.stale, self.bonus, self.seed = stale, bonus, seed
        self._full = 0
        self._updated: dict[Part, Tensor] = {}  # step at which every token ran, (token,)

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        return layout.branches()

    @property
    def waits(self) -> int:
        return 1  # tokens are checked

    def begin(self, run: RunInfo) -> None:
        self.config.check_steps(run.num_steps)
        super().begin(run)
        self._updated = {}

    def left_out(self, step: int) -> Collection[Part]:
        return () if self.config.schedule.is_full(step, self.run.num_steps) else self.watched

    def decision(self, step: int, probe: Tensor | None = None) -> Decision:
        runs = (step - self._full) % self.every == 0
        return Decision({part: self._chosen(step, part) if runs else None for part in self.left_out(step)})

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self._full = step
        self._updated = {
            part: torch.full(residual.shape[1:2], step, device=residual.device)
            for part in self.watched
            if part.site == "feed_forward"
        }

    def ran(self, step: int, decision: Decision, residual: Tensor | None) -> None:
        for part, tokens in decision.parts.items():
            if tokens is not None:
                self._updated[part] = self._updated[part].index_fill(0, tokens, step)

    def _chosen(self, step: int, part: Part) -> Tensor | None:
        if part.site != "feed_forward":
            return None
        held: Value = self.kept(part)[0][1]  # (B, N, D)
        if held.shape[1] != len(self._updated[part]):
            raise RuntimeError(
                f"ToCaPolicy: {part} takes {held.shape[1]} tokens and the image has {len(self._updated[part])}, so "
                "single ones cannot run there"
            )
        count = round(self.share * held.shape[1])
        if count == 0:
            return None
        if self.score == "random":
            generator = torch.Generator().manual_seed((self.seed * 1009 + step) * 1009 + part.first)
            scores = torch.rand(held.shape[1], generator=generator).to(held.device)
        else:
            norms = held.float().norm(dim=-1).mean(dim=0)
            scores = norms / norms.amax().clamp_min(1e-12)
        scores = scores + self.stale * (step - self._updated[part]) / self.config.interval
        return self._with_bonus(scores).topk(count).indices.sort().values

    def _with_bonus(self, scores: Tensor) -> Tensor:
        """Add `bonus` to the best of every square, (token,)."""
        grid = self.run.grid
        if not self.bonus or grid is None:
            return scores
        image = scores.view(grid)  # (frame, row, column)
        best = torch.nn.functional.max_pool2d(image[None], 4, ceil_mode=True)[0]
        best = best.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)[:, : grid[1], : grid[2]]
        return (image + self.bonus * (image == best)).flatten()
