"""Choose by the stream at two depths at once. Beyond the paper."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.checks import check_least
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction, ProbeKind
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class SeveralDepthsPolicy(AnchoredPolicy):
    """Choose by the sum of two losses: of the hidden state that enters the first block, and of what `depth` blocks add.

    The first is nearly a function of the noisy image; the second has been through attention. Each is measured by
    `config.distance`, which makes them comparable.

    Cost of a skip step: `depth` blocks, and scoring twice. Memory: J probes of twice the size, J residuals.

    Args:
        config: as for TAP; its probe depth is not used.
        depth: at least 1.

    Raises:
        ValueError: a depth below 1.
    """

    needs_probe = True
    probe_kind: ProbeKind = "stream"

    def __init__(self, config: TAPConfig | None = None, *, depth: int = 1, family: Family | None = None) -> None:
        super().__init__(config, family=family)
        check_least("SeveralDepthsPolicy: depth", depth, 1)
        self.probe_depth = depth

    def kept(self, probe: Tensor | None) -> Tensor | None:
        """Keep what enters the first block, and what the blocks up to the depth add, (2, batch, token, channel)."""
        assert probe is not None
        parts = probe.detach().clone()
        parts[1] -= parts[0]
        return parts

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        found = self.candidates(step)
        losses = self.losses(found, self.kept(probe)).sum(dim=0)  # (2, B, N, P) -> (B, N, P)
        return self.apply(found, self.select(losses), losses)
