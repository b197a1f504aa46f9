"""Run Pyramid Attention Broadcast: attention runs at every few steps, each kind at its own pace (arXiv 2408.12588)."""

from __future__ import annotations

from collections.abc import Collection

from tapstudy.core.checks import check_integer
from tapstudy.policies.base import RunInfo
from tapstudy.policies.decision import Layout, Part
from tapstudy.policies.parts import PartsPolicy


class PABPolicy(PartsPolicy):
    """In the middle of the run, self-attention runs at every `attention`-th step, cross-attention at its own pace.

    At the steps between, the output of the layer at the last step at which it ran takes its place. Feed-forward layers
    always run.

    Source: the rule of diffusers' PyramidAttentionBroadcast (steps that are a multiple of the range run), whose window
    is in timesteps: steps are taken for evenly spaced in them. Cost of a step: everything but attention. Memory: one
    output of every attention layer per context.

    Args:
        attention: range of self-attention, and of the attention over image and text together; 1: runs always.
        cross: range of cross-attention.
        window: shares of the steps, from the first on, between which attention is left out.

    Raises:
        TypeError, ValueError: settings out of range; at the beginning of a run, a number of steps that nobody knows.
    """

    def __init__(self, attention: int = 2, cross: int = 6, *, window: tuple[float, float] = (0.2, 0.9)) -> None:
        check_integer("PABPolicy: attention", attention, 1)
        check_integer("PABPolicy: cross", cross, 1)
        if not 0 <= window[0] < window[1] <= 1:
            raise ValueError(f"PABPolicy: window must be two shares of the steps that rise, got {window}")
        super().__init__()
        self.attention, self.cross, self.window = attention, cross, window

    def parts(self, layout: Layout) -> tuple[Part, ...]:
        return layout.modules("attention", "cross_attention")

    def begin(self, run: RunInfo) -> None:
        if run.num_steps is None and self.window != (0, 1):
            raise ValueError(
                "PABPolicy needs the number of sampling steps, which a bare transformer does not tell: apply it to the "
                "pipeline, or set window to (0, 1)"
            )
        super().begin(run)

    def left_out(self, step: int) -> Collection[Part]:
        steps = self.run.num_steps
        if steps is not None and not self.window[0] * steps < step < self.window[1] * steps:
            return ()
        ranges = {"attention": self.attention, "cross_attention": self.cross}
        return [part for part in self.watched if step % ranges[part.site]]
