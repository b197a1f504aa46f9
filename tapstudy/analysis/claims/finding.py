"""Claims, the inequalities they stand for, and the verdicts on all of them as one family of tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tapstudy.analysis.stats import Interval, holm, mean_interval, sign_flip_pvalue

Array = NDArray[np.floating]
Verdict = Literal["holds", "fails", "undecided"]

# The least difference in PSNR that matters here: "as good as" means at most this much worse.
MARGIN = 0.5  # dB
ALPHA = 0.05


@dataclass(frozen=True, eq=False)
class Part:
    """Hold one inequality: the mean over images lies above (or below) a threshold.

    Args:
        name: what the values are.
        values: one per image, (image,).
        threshold: fixed before the run.
        above: the claimed side.
        unit: of values and threshold, "" for pure numbers.

    Raises:
        ValueError: fewer than two images, or values that are not finite.
    """

    name: str
    values: Array
    threshold: float = 0.0
    above: bool = True
    unit: str = "dB"

    def __post_init__(self) -> None:
        if np.ndim(self.values) != 1 or len(self.values) < 2 or not np.isfinite(self.values).all():
            raise ValueError(
                f"{self.name}: a claim needs one finite value for each of at least two images, got {self.values!r}"
            )

    @cached_property
    def interval(self) -> Interval:
        """Return the mean and the bounds of its 95 % interval."""
        return mean_interval(self.values)

    @cached_property
    def pvalues(self) -> tuple[float, float]:
        """Test both sides, by flipping signs around the threshold: the claimed one, and the other."""
        shifted = np.asarray(self.values, dtype=np.float64) - self.threshold
        half = sign_flip_pvalue(shifted) / 2
        if shifted.mean() == 0:
            return 1.0, 1.0
        return (half, 1 - half) if (shifted.mean() > 0) == self.above else (1 - half, half)

    @property
    def side(self) -> Verdict:
        """Tell where the whole interval lies."""
        _, low, high = self.interval
        if low > self.threshold:
            return "holds" if self.above else "fails"
        if high < self.threshold:
            return "fails" if self.above else "holds"
        return "undecided"


@dataclass(frozen=True, eq=False)
class Claim:
    """Hold a hypothesis as the conjunction of its parts.

    Attributes:
        name: such as "H1".
        statement: what is claimed.
        measure: what the values are and how they were got.
        parts: all must hold.
        shown: further values, reported without a verdict; their thresholds say nothing.
        remark: anything else worth a line.
    """

    name: str
    statement: str
    measure: str
    parts: tuple[Part, ...]
    shown: tuple[Part, ...] = ()
    remark: str = ""

    @property
    def pvalues(self) -> tuple[float, float]:
        """Test that the claim is false though it looks true: the weakest part (intersection-union test, Berger 1982).
        That no part is violated though one looks so: the strongest violation's, times the number of parts (Bonferroni).
        """
        holding, violated = zip(*(part.pvalues for part in self.parts), strict=True)
        return max(holding), min(1.0, len(self.parts) * min(violated))

    @property
    def pvalue(self) -> float:
        """Return the p-value of either verdict."""
        return min(1.0, 2 * min(self.pvalues))


@dataclass(frozen=True, eq=False)
class Finding:
    """Hold the verdict on a claim.

    Attributes:
        adjusted: p-value of the verdict, adjusted for all claims that were judged together (Holm).
        decisive: the part that decides: the weakest, or of a claim that fails the one most clearly violated.
    """

    claim: Claim
    verdict: Verdict
    adjusted: float
    decisive: Part


def judge(claims: Sequence[Claim], *, alpha: float = ALPHA) -> list[Finding]:
    """Judge a family of claims, in their order.

    A claim holds if the 95 % interval of every part lies on the claimed side of its threshold, fails if that of at
    least one lies on the other side, and in both cases only if the adjusted p-value is at most `alpha`. Otherwise it is
    undecided: there were too few images, or the value is too close to the threshold.

    Raises:
        ValueError: no claims.
    """
    if not claims:
        raise ValueError("judge: there are no claims")
    adjusted = holm([claim.pvalue for claim in claims])
    return [_finding(claim, float(p), alpha) for claim, p in zip(claims, adjusted, strict=True)]


def _finding(claim: Claim, adjusted: float, alpha: float) -> Finding:
    holding, violated = claim.pvalues
    sides = {part.side for part in claim.parts}
    decisive = max(claim.parts, key=lambda part: part.pvalues[0])
    if adjusted <= alpha and holding < violated and sides == {"holds"}:
        return Finding(claim, "holds", adjusted, decisive)
    if adjusted <= alpha and violated < holding and "fails" in sides:
        return Finding(claim, "fails", adjusted, min(claim.parts, key=lambda part: part.pvalues[1]))
    return Finding(claim, "undecided", adjusted, decisive)
