"""Share what TAP and its controls have in common: schedule, anchors, family. They differ in what a token takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tapstudy.core.products import anchor_products
from tapstudy.core.resident import resident
from tapstudy.core.scoring import assemble, predictor_losses, select
from tapstudy.policies.base import CachePolicy, Losses, Prediction, RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Candidates, Family, check_family, spaced_candidates


class AnchoredPolicy(CachePolicy):
    """Run in full on a schedule; in between, apply a predictor of a family to the anchors.

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
        super().__init__(self.config.history.anchors(self.family.num_anchors))
        self.labels = self.family.labels
        self.residual_site = self.config.residual
        self.probe_depth = self.config.probe_depth
        self._known: Tensor | None = None

    def begin(self, run: RunInfo) -> None:
        self.config.check_steps(run.num_steps)
        super().begin(run)

    def restart(self) -> None:
        self._known = None

    def wants_full(self, step: int) -> bool:
        return self.config.schedule.is_full(step, self.run.num_steps)

    def kept(self, probe: Tensor | None) -> Tensor | None:
        """Keep the probe as it is, if the policy needs it."""
        return probe if self.needs_probe else None

    def candidates(self, step: int) -> Candidates:
        """Find the family's predictors at a skip step, identical ones merged."""
        newest, *older = self.anchors.steps
        return spaced_candidates(self.family, (0, *[anchor - newest for anchor in older]), step - newest)

    def known_products(self, probes: Sequence[Tensor]) -> Tensor | None:
        """Compute `anchor_products` of the anchors' probes once after every full step; None where none are read."""
        if self._known is None and self.config.distance != "l1" and probes[0].device.type == "cpu":
            self._known = anchor_products(probes)
        return self._known

    def index_of(self, order: int, shift: float) -> int:
        """Find a predictor in the family; raise ValueError if it is not there."""
        members = [(label.order, label.shift) for label in self.labels]
        if (order, shift) not in members:
            raise ValueError(
                f"{type(self).__name__}: no predictor of order {order} and shift {shift:g} in the family: {members}"
            )
        return members.index((order, shift))

    def losses(self, found: Candidates, probe: Tensor | None) -> Tensor:
        """Compute the distance of every predicted probe to the actual one, (batch, token, distinct)."""
        assert probe is not None
        return predictor_losses(self.anchors.probes, probe, found.weights, distance=self.config.distance)

    def take(self, step: int, member: int) -> Prediction:
        """Predict every token by the same member of the family."""
        found, residuals = self.candidates(step), self.anchors.residuals
        choice = torch.full(residuals[0].shape[:2], int(found.inverse[member]), device=residuals[0].device)
        return self.labelled(found, assemble(residuals, found.weights, choice), choice)

    def select(self, losses: Tensor) -> Tensor:
        """Choose by losses, (batch, token, any), together with other tokens if the configuration says so."""
        config = self.config
        return select(losses, granularity=config.granularity, grid=self.run.grid, region_size=config.region_size)

    def apply(self, found: Candidates, choice: Tensor, losses: Losses | None = None) -> Prediction:
        """Predict the residual by `choice`, (batch, token) into the distinct candidates."""
        return self.labelled(found, assemble(self.anchors.residuals, found.weights, choice), choice, losses=losses)

    def labelled(
        self, found: Candidates, residual: Tensor, choice: Tensor, *, losses: Losses | None = None
    ) -> Prediction:
        """Put a prediction, found in terms of the distinct candidates, in terms of the members of the family."""
        return Prediction(
            residual, resident(found.first, choice.device)[choice], losses, found.inverse, disposable=True
        )

    def errors(self, step: int, truth: Tensor) -> tuple[Tensor, Tensor]:
        """Measure how far each labelled predictor is from the true residual at a skip step.

        Returns:
            |prediction - truth| / |truth|, (batch, token, predictor), and whether no earlier predictor is identical,
            (predictor,).
        """
        found = self.candidates(step)
        losses = predictor_losses(self.anchors.residuals, truth, found.weights, distance="l2")  # (B, N, distinct)
        distinct = torch.isin(torch.arange(len(found.inverse)), found.first)
        return losses[..., resident(found.inverse, losses.device)], distinct

    @property
    def family_text(self) -> str:
        """The predictors as a text, for the record of a run."""
        return repr(self.family)
