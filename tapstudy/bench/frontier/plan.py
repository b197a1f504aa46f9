"""What `tapstudy bench frontier` runs beyond the images: numbers of full passes."""

from __future__ import annotations

from dataclasses import dataclass

from tapstudy.bench.plan import StudyPlan


@dataclass(frozen=True, kw_only=True)
class FrontierPlan(StudyPlan):
    """Hold images and costs; further arguments as of `StudyPlan`.

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
