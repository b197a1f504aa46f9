"""Which images a study is made on: those that are reported, and those that everything is fitted to and chosen on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tapstudy.bench.conditions import Condition
from tapstudy.bench.image_set import ImageSet
from tapstudy.core.schedule import Schedule

WARMUP = 3  # of all schedules


@dataclass(frozen=True, kw_only=True)
class StudyPlan:
    """Hold the images of a study.

    Args:
        model: embedded model or model folder.
        seeds: test seeds; every label is sampled with each.
        held_out: seeds on which everything is fitted and chosen.
        labels: sampled with every seed.
        steps: T.
        guidance: scale of classifier-free guidance.
        tuning: so many of the held-out images, the last ones, serve for choosing between settings; the others for
            fitting, so that nothing is chosen on what it was fitted to.

    Raises:
        ValueError: seeds both tested and held out, too few images.
    """

    model: str = "mnist-dit"
    seeds: tuple[int, ...] = (31, 32)
    held_out: tuple[int, ...] = (41, 42, 43)
    labels: tuple[Condition, ...] = tuple(range(10))
    steps: int = 50
    guidance: float = 2.0
    tuning: int = 20

    def __post_init__(self) -> None:
        if both := sorted(set(self.seeds) & set(self.held_out)):
            raise ValueError(f"the seeds {both} are both tested and held out: choose others")
        held_out = len(self.images(self.held_out))
        if len(self.test) < 2 or not 1 <= self.tuning < held_out:
            raise ValueError(
                f"needs at least two test images and more held-out images than are used for tuning, got "
                f"{len(self.test)}, {held_out} and {self.tuning}"
            )

    def usual_mask(self, interval: int) -> tuple[int, ...]:
        """List the full steps of S(N, 3)."""
        return Schedule(interval, WARMUP).steps(self.steps)

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


@dataclass(frozen=True, kw_only=True)
class FrontierPlan(StudyPlan):
    """Hold images and costs of the comparison; further arguments as of `StudyPlan`.

    Args:
        passes: numbers of full passes to compare at; each must be that of a schedule S(N, 3).

    Raises:
        ValueError: a number of passes that no interval gives.
    """

    passes: tuple[int, ...] = (14, 10, 8)

    def __post_init__(self) -> None:
        super().__post_init__()
        for passes in self.passes:
            self.interval(passes)
