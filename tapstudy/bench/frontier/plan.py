"""What `tapstudy bench frontier` runs: images, held-out images, numbers of full passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapstudy.bench.image_set import Condition, ImageSet
from tapstudy.core.schedule import Schedule

WARMUP = 3  # of all schedules


@dataclass(frozen=True, kw_only=True)
class FrontierPlan:
    """Hold images and costs.

    Args:
        model: embedded model or model folder.
        seeds: test seeds; every label is sampled with each.
        held_out: seeds on which everything is fitted and chosen.
        labels: sampled with every seed.
        passes: numbers of full passes to compare at; each must be that of a schedule S(N, 3).
        steps: T.
        guidance: scale of classifier-free guidance.
        tuning: so many of the held-out images, the last ones, serve for choosing between settings; the others for
            fitting, so that nothing is chosen on what it was fitted to.

    Raises:
        ValueError: seeds both tested and held out, too few images, a number of passes that no interval gives.
    """

    model: str = "mnist-dit"
    seeds: tuple[int, ...] = (11, 12)
    held_out: tuple[int, ...] = (21,)
    labels: tuple[Condition, ...] = tuple(range(10))
    passes: tuple[int, ...] = (14, 10, 8)
    steps: int = 50
    guidance: float = 2.0
    tuning: int = 3

    def __post_init__(self) -> None:
        if both := sorted(set(self.seeds) & set(self.held_out)):
            raise ValueError(f"the seeds {both} are both tested and held out: choose others")
        held_out = len(self.images(self.held_out))
        if len(self.test) < 2 or not 1 <= self.tuning < held_out:
            raise ValueError(
                f"needs at least two test images and more held-out images than are used for tuning, got "
                f"{len(self.test)}, {held_out} and {self.tuning}"
            )
        for passes in self.passes:
            self.interval(passes)

    def interval(self, passes: int) -> int:
        """Return the N of S(N, 3) with so many full steps; of several, the least.

        Raises:
            ValueError: there is none, with the numbers there are.
        """
        counts = {n: len(self.usual_mask(n)) for n in range(self.steps - 1, 0, -1)}
        found = {count: n for n, count in counts.items()}
        if passes not in found:
            raise ValueError(
                f"no S(N, {WARMUP}) of {self.steps} steps makes {passes} full passes; there are {sorted(found)}"
            )
        return found[passes]

    def usual_mask(self, interval: int) -> tuple[int, ...]:
        return Schedule(interval, WARMUP).steps(self.steps)

    def images(self, seeds: Sequence[int]) -> ImageSet:
        """Return every label with each of these seeds."""
        return ImageSet.of(self.model, seeds=seeds, labels=self.labels, steps=self.steps, guidance=self.guidance)

    @property
    def test(self) -> ImageSet:
        """Tell what is reported."""
        return self.images(self.seeds)

    @property
    def fitted_to(self) -> ImageSet:
        """Return held-out images that methods are fitted to."""
        return self.images(self.held_out)[: -self.tuning]

    @property
    def tuned_on(self) -> ImageSet:
        """Return held-out images that settings are chosen on."""
        return self.images(self.held_out)[-self.tuning :]
