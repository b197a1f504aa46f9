"""Beyond the paper: choose by the stream at two depths at once."""

from __future__ import annotations

from torch import Tensor

from tapstudy.core.scoring import predictor_losses
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction, ProbeKind
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class SeveralDepthsPolicy(AnchoredPolicy):
    """TAP on the sum of two losses: of the hidden state that enters the first block, and of what `depth` blocks add.

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
        if depth < 1:
            raise ValueError(f"SeveralDepthsPolicy: depth must be at least 1 (one block runs), got {depth}")
        self.probe_depth = depth

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        assert probe is not None
        super().observe(step, _parts(probe), residual)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        found, parts = self.candidates(step), _parts(probe)
        losses = predictor_losses(self.anchors.probes, parts, found.weights, distance=self.config.distance)
        losses = losses.sum(dim=0)  # (2, B, N, P) -> (B, N, P)
        return self.apply(found, self.select(losses), losses)


def _parts(probe: Tensor) -> Tensor:
    """(2, batch, token, channel): what enters the first block, and what the blocks up to the depth add."""
    parts = probe.detach().clone()
    parts[1] -= parts[0]
    return parts
