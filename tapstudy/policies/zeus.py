"""Run ZEUS: extrapolate the model's output from two points, every other skip step (arXiv 2604.01552)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal, get_args

from torch import Tensor

from tapstudy.core.anchors import Anchors
from tapstudy.policies.base import CachePolicy, Prediction, ResidualSite

Mode = Literal["interleaved", "extrapolate", "reuse"]


class ZeusPolicy(CachePolicy):
    """Work on the model's output psi alone: no probe, no hidden states.

    When: step i + 1 is skipped if `start` <= i < `end` and i mod `denominator` is in `modular`, but no more than
    `max_skips` in a row. From `sparse_from` on the rule is i mod `sparse_interval` != 0 instead (the Lagrange phase of
    the published code, which for flow matching changes the schedule only).

    What: in a run of skips after full step a_0 the first, third, .. use P = 2 psi(a_0) - psi(a_1), the others psi(a_0)
    again ("interleaved"); "extrapolate" always uses P, "reuse" never. P goes one step's worth beyond a_0 whatever the
    gap between a_1 and a_0, as in the published code; with `gap_normalise` it is psi(a_0) + (psi(a_0) - psi(a_1)) / g.

    Predicting per guidance branch is the same as predicting the guided output, as there, while the guidance scale is
    constant: P is linear. The published x0 modes are left out. Cost of a skip step: nothing (the model does not run).
    Memory: two outputs per context.

    Args:
        denominator, modular, start, end: 2, (1,), 10 and 47 in the library; 3, (0, 1), 10 and 45 in its FLUX demo.

    Raises:
        ValueError: an unknown mode, or a start below 2 (there would be nothing to extrapolate from).
    """

    residual_site: ResidualSite = "output"

    def __init__(
        self,
        *,
        denominator: int = 2,
        modular: Collection[int] = (1,),
        start: int = 10,
        end: int = 47,
        max_skips: int = 4,
        sparse_from: int | None = None,
        sparse_interval: int = 6,
        mode: Mode = "interleaved",
        gap_normalise: bool = False,
    ) -> None:
        if mode not in get_args(Mode) or start < 2:
            raise ValueError(f"ZeusPolicy: mode must be one of {get_args(Mode)} and start at least 2, got {mode!r} "
                             f"and {start}")  # fmt: skip
        super().__init__(Anchors(2))
        self.mode, self.gap_normalise = mode, gap_normalise
        self.skip_steps = zeus_skips(
            denominator=denominator,
            modular=modular,
            start=start,
            end=end,
            max_skips=max_skips,
            sparse_from=sparse_from,
            sparse_interval=sparse_interval,
        )

    def wants_full(self, step: int) -> bool:
        return step not in self.skip_steps or len(self.anchors) < 2

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        (newest, older), steps = self.anchors.residuals, self.anchors.steps
        reuses = self.mode == "reuse" or (self.mode == "interleaved" and (step - steps[0]) % 2 == 0)
        if reuses:
            return Prediction(newest)
        gap = steps[0] - steps[1] if self.gap_normalise else 1
        return Prediction(newest + (newest - older) / gap)


def zeus_skips(
    *,
    denominator: int,
    modular: Collection[int],
    start: int,
    end: int,
    max_skips: int,
    sparse_from: int | None = None,
    sparse_interval: int = 6,
) -> frozenset[int]:
    """List the steps that ZEUS skips; see `ZeusPolicy`."""
    skips: set[int] = set()
    run = 0
    for i in range(start, end):
        sparse = sparse_from is not None and i >= sparse_from
        wanted = i % sparse_interval != 0 if sparse else i % denominator in modular
        run = run + 1 if wanted and run < max_skips else 0
        if run:
            skips.add(i + 1)
    return frozenset(skips)
