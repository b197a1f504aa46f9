"""TAP, the Token-Adaptive Predictor (arXiv 2603.03792)."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from tapstudy.core.compiled import CompiledStep
from tapstudy.core.scoring import losses_of, tap_step
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family


class TAPPolicy(AnchoredPolicy):
    """At a skip step every token takes the predictor that forecasts its probe best.

    Cost of a skip step beside the model's own embedding, first modulation and tail: per token O(J D) for inner products
    with J anchors (O(J^2 D) for those among the anchors, once after every full step); O(J^2) per candidate; O(J D) to
    assemble. Memory: J probes and J residuals per context.

    Args:
        config, family: as for `AnchoredPolicy`.
        compile: score, choose and assemble in one graph of `torch.compile`. The first skip step then takes seconds.
        fused: score and choose in one Triton kernel, assemble in another, see `core.fused`. None: on CUDA, where triton
            is and `compile` is not asked for.

    Raises:
        ValueError: `compile` with distance l1 or granularity region, or with `fused`.
    """

    needs_probe = True

    def __init__(
        self,
        config: TAPConfig | None = None,
        *,
        family: Family | None = None,
        compile: bool = False,
        fused: bool | None = None,
    ) -> None:
        if compile and fused:
            raise ValueError("compile=True makes kernels of its own: leave fused out")
        super().__init__(config, family=family)
        self.fused = fused
        config = self.config
        self.compiled = CompiledStep(distance=config.distance, granularity=config.granularity) if compile else None

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        assert probe is not None
        config, found, probes = self.config, self.candidates(step), self.anchors.probes
        residual, choice, scores = (self.compiled or tap_step)(
            probes,
            probe,
            self.anchors,
            found.weights,
            known=self.known_products(probes),
            distance=config.distance,
            granularity=config.granularity,
            grid=self.run.grid,
            region_size=config.region_size,
            fused=self.fused,
        )
        return self.labelled(found, residual, choice, losses=partial(losses_of, scores, distance=config.distance))
