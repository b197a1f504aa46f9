"""What a claim is before anything was measured, and the values it is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, spearmanr

from tapstudy.analysis.claims.evidence import Array, Evidence
from tapstudy.analysis.claims.finding import Claim, Part

TOY = 0.3  # rank correlations: 0.33 in the toy of Latent-TAP, 0.77 in its small trained transformers
DEEPER = "tap N=8 depth="
ALL_INTERVALS = (2, 3, 4, 6, 8)
MASKS = ("N=8", "even", "start-dense", "best-mask")
PREDICTORS = ("order0", "order1", "tap", "step")
ON_MASKS = [f"{predictor} {mask}" for mask in MASKS for predictor in PREDICTORS]


class Values(NamedTuple):
    """Name one number per image: a weighted sum of what runs reached, or a function of the evidence; its threshold."""

    name: str
    of: Mapping[str, float] | Callable[[Evidence], Array]
    threshold: float = 0.0
    above: bool = True
    measure: str = "psnr"

    def part(self, evidence: Evidence) -> Part:
        """Look the values up."""
        values = self.of(evidence) if callable(self.of) else evidence.mix(self.of, self.measure)
        return Part(self.name, values, self.threshold, self.above, "dB" if self.measure == "psnr" else "")


Several = Sequence[Values] | Callable[[Evidence], Sequence[Values]]


@dataclass(frozen=True)
class Hypothesis:
    """Hold a claim before anything was measured; fields as in `Claim`."""

    name: str
    statement: str
    measure: str | Callable[[Evidence], str]
    parts: Several
    shown: Several = ()
    remark: str | Callable[[Evidence, Claim], str] = ""

    def tested(self, evidence: Evidence) -> Claim:
        """Fill in what was measured."""
        parts, shown = (
            tuple(one.part(evidence) for one in (some(evidence) if callable(some) else some))
            for some in (self.parts, self.shown)
        )
        measure = self.measure(evidence) if callable(self.measure) else self.measure
        claim = Claim(self.name, self.statement, measure, parts, shown)
        return replace(claim, remark=self.remark(evidence, claim) if callable(self.remark) else self.remark)


def psnr(name: str, run: str, minus: str = "", threshold: float = 0.0, *, above: bool = True) -> Values:
    """Compare the PSNR of a run with that of another."""
    return Values(name, {run: 1, **({minus: -1} if minus else {})}, threshold, above)


def rank(name: str, run: str, minus: str = "", threshold: float = 0.0, *, measure: str = "spearman") -> Values:
    """Compare how well the probe ranks the predictors in a setting with how well it does in another."""
    return psnr(name, run, minus, threshold)._replace(measure=measure)


def pure(name: str, of: Callable[[Evidence], Array], threshold: float = 0.0, *, above: bool = True) -> Values:
    """Take numbers without a unit."""
    return Values(name, of, threshold, above, measure="")


def ranks(*runs: str) -> list[Values]:
    return [rank(f"rank correlation, {run}", run) for run in runs]


def token(name: str, column: str, threshold: float = 0.0) -> Values:
    return pure(name, lambda evidence: evidence.tokens[column].values, threshold)


def equal_cost(evidence: Evidence, cell: str) -> str:
    """Find the TAP run with the first block's probe and the least interval that costs at most 2 % more than `cell`."""
    known = evidence.quality["cell"].values.tolist()
    names = [f"tap N={n}" for n in range(8, 1, -1) if f"tap N={n}" in known]
    within = [name for name in names if evidence.flops(name) <= 1.02 * evidence.flops(cell)]
    if not within:
        raise ValueError(f"claims: no run of TAP costs as little as {cell!r}: there are {names}")
    return within[-1]


def at_equal_cost(evidence: Evidence) -> list[Values]:
    pairs = [(deep, equal_cost(evidence, deep)) for deep in evidence.cells(DEEPER)]
    return [psnr(f"PSNR, {cheap} minus {deep}", cheap, deep) for deep, cheap in pairs]


def by_part(evidence: Evidence) -> list[Values]:
    """Tell the rank correlation at every distance and in every third."""

    def one(name: str, dim: str, label: object) -> Values:
        return pure(name, lambda evidence: evidence.ranking[f"spearman_{name_of[dim]}"].sel({dim: label}).values, TOY)

    name_of = {"distance": "at_distance", "phase": "in_phase"}
    at, within = (evidence.ranking[dim].values.tolist() for dim in name_of)
    return [
        *(one(f"rank correlation at k = {k}", "distance", k) for k in at),
        *(one(f"rank correlation in the {name} third of the steps", "phase", name) for name in within),
    ]


def below(_: Evidence, claim: Claim) -> str:
    at = "rank correlation at "
    found = [p.name.removeprefix(at) for p in claim.parts if p.name.startswith(at) and p.side == "fails"]
    return f"Below {TOY:g} at {', '.join(found)}." if found else f"At no distance is it shown to be below {TOY:g}."


def ranked_and_run(evidence: Evidence) -> list[str]:
    both = [name for name in evidence.ranking["cell"].values.tolist() if name in evidence.quality["cell"].values]
    cells = [name for name in both if name.startswith(("tap ", "shuffled "))]
    if len(cells) < 4:
        raise ValueError(f"claims: H12 needs at least four settings that were both ranked and run, got {cells}")
    return cells


def rank_and_gain(evidence: Evidence) -> Array:
    """Correlate, image by image, over settings; 0 where one of the two is the same everywhere and tells nothing."""
    cells = ranked_and_run(evidence)
    # (cell, image) each
    gain = evidence.on_ranked(cells) - evidence.on_ranked([f"best-fixed {name.split()[1]}" for name in cells])
    fidelity = np.stack(evidence.rows(cells, "spearman"))
    return np.array([
        0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)
        for a, b in zip(fidelity.T, gain.T, strict=True)
    ])  # fmt: skip


def range_of(axis: int) -> Callable[[Evidence], Array]:
    """Tell the range of an image's means by mask (axis 1: over predictors) or by predictor (axis 0), (image,)."""

    def of(evidence: Evidence) -> Array:
        table = np.stack(evidence.rows(ON_MASKS)).reshape(len(MASKS), len(PREDICTORS), -1)  # (mask, predictor, image)
        return np.asarray(np.ptp(table.mean(axis=axis), axis=0))

    return of


def log_ratio(measure: str, policy: str = "oracle", *, per: str = "") -> Callable[[Evidence], Array]:
    """Take a log ratio to order 1, perhaps minus another."""

    def of(evidence: Evidence) -> Array:
        log = evidence.propagation.sel(policy=policy)
        return log[measure].values - (log[per].values if per else 0)

    return of


def all_logs(evidence: Evidence) -> list[Values]:
    return [
        psnr("PSNR, oracle minus order 1", "oracle N=8", "order1 N=8"),
        psnr("PSNR, oracle minus TAP", "oracle N=8", "tap N=8"),
        psnr("PSNR, oracle minus order 1, both in output space", "oracle-latent N=8", "order1-latent N=8"),
        *(
            pure(f"log ratio of {name}, {policy} to order 1", log_ratio(name, policy))
            for policy in evidence.propagation["policy"].values.tolist()
            for name in ("path_length", "coherence", "amplification", "deviation")
            if name in evidence.propagation
        ),
    ]


def pays(_: Evidence, claim: Claim) -> str:
    at = [str(n) for n, part in zip(ALL_INTERVALS, claim.shown, strict=True) if part.side == "holds"]
    return f"The gain is above 0 at N = {', '.join(at) or 'none'}."


def wins(_: Evidence, claim: Claim) -> str:
    ahead = claim.parts[-1].values
    wins, count = int((ahead > 0).sum()), len(ahead)
    sign = binomtest(wins, count).pvalue
    return f"At N = 8 TAP is ahead on {wins} of {count} images (sign test p = {sign:.2g})."
