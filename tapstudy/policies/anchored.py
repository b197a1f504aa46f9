"""What TAP and its controls share: schedule, anchors and family. They differ in which predictor a token takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tapstudy.core.schedule import is_full_step
from tapstudy.core.scoring import anchor_products, assemble, predictor_losses, select
from tapstudy.policies.base import Losses, Policy, Prediction, RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Candidates, Family, candidates, check_family


class AnchoredPolicy(Policy):
    """Full steps on a schedule; in between, a predictor of a family applied to the anchors.

    Args:
        config: schedule, residual site, history and, unless `family` is given, the family.
        family: any other family of linear predictors.

    Raises:
        TypeError, ValueError: something that is no family, see `check_family`.
    """

    def __init__(self, config: TAPConfig | None = None, *, family: Family | None = None) -> None:
        self.config = config or TAPConfig()
        self.family = self.config.family if family is None else family
        check_family(self.family)
        self.labels = self.family.labels
        self.residual_site = self.config.residual
        self.probe_depth = self.config.probe_depth
        self.anchors = self.config.anchors(self.family.num_anchors)
        self._known: Tensor | None = None
        self.run = RunInfo()

    def begin(self, run: RunInfo) -> None:
        if self.config.cooldown_steps and run.num_steps is None:
            raise ValueError(
                f"cooldown_steps={self.config.cooldown_steps} needs the number of sampling steps, which a bare "
                "transformer does not tell: apply the policy to the pipeline"
            )
        self.run = run
        self.anchors.clear()
        self._known = None

    def wants_full(self, step: int) -> bool:
        config = self.config
        if self.run.num_steps is not None and step >= self.run.num_steps - config.cooldown_steps:
            return True
        if config.full_steps is not None:
            return step in config.full_steps
        return is_full_step(step, interval=config.interval, warmup_steps=config.warmup_steps)

    def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        self.anchors.push(step, probe if self.needs_probe else None, residual)
        self._known = None

    def candidates(self, step: int) -> Candidates:
        return candidates(self.family, self.anchors.steps, step)

    def known_products(self, probes: Sequence[Tensor]) -> Tensor | None:
        """`anchor_products` of the anchors' probes, found once after every full step; None where none are needed."""
        if self._known is None and self.config.distance != "l1":
            self._known = anchor_products(probes)
        return self._known

    def select(self, losses: Tensor) -> Tensor:
        """Choose by losses, (batch, token, any), together with other tokens if the configuration says so."""
        config = self.config
        return select(losses, granularity=config.granularity, grid=self.run.grid, region_size=config.region_size)

    def apply(self, found: Candidates, choice: Tensor, losses: Losses | None = None) -> Prediction:
        """The prediction that `choice`, (batch, token) into the distinct candidates, makes for the residual."""
        return self.labelled(found, assemble(self.anchors.residuals, found.weights, choice), choice, losses=losses)

    def labelled(
        self, found: Candidates, residual: Tensor, choice: Tensor, *, losses: Losses | None = None
    ) -> Prediction:
        """In terms of the members of the family, what was found in terms of the distinct candidates."""
        return Prediction(residual, found.first.to(choice.device)[choice], losses, found.inverse, disposable=True)

    def errors(self, step: int, truth: Tensor) -> tuple[Tensor, Tensor]:
        """How far each labelled predictor is from the true residual at a skip step.

        Returns:
            |prediction - truth| / |truth|, (batch, token, predictor), and whether no earlier predictor is identical,
            (predictor,).
        """
        found = self.candidates(step)
        losses = predictor_losses(self.anchors.residuals, truth, found.weights, distance="l2")  # (B, N, distinct)
        distinct = torch.isin(torch.arange(len(found.inverse)), found.first)
        return losses[..., found.inverse.to(losses.device)], distinct

    @property
    def family_text(self) -> str:
        """What the predictors are, for the record of a run."""
        return repr(self.family)

    @property
    def cache_bytes(self) -> int:
        return self.anchors.nbytes
