"""What a claim is before anything was measured, and the values it is about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest, spearmanr

from tapstudy.analysis.claims.evidence import Array, Evidence
from tapstudy.analysis.claims.finding import Claim, Part
from tapstudy.analysis.claims.measure import OUTPUT

TOY = 0.3  # rank correlations: 0.33 in the toy of Latent-TAP, 0.77 in its small trained transformers
DEEPER = "tap N=8 depth="
MASKS = ("N=8", "even", "start-dense", "best")
PREDICTORS = ("order0", "order1", "tap", "step")


class Values(NamedTuple):
    """Name one number per image: a weighted sum of what runs reached, or a function of the evidence; its threshold."""

    name: str
    of: Mapping[str, float] | Callable[[Evidence], Array]
    threshold: float = 0.0
    above: bool = True
    measure: str = "psnr"
    optional: bool = False

    def if_there(self) -> Values:
        """Return the same for runs that not every model has."""
        return self._replace(optional=True)

    def there(self, evidence: Evidence) -> bool:
        """Whether it can be told, or must be: `optional` are runs that not every model has."""
        runs = () if callable(self.of) or not self.optional else self.of
        return {*runs} <= {*evidence.quality["cell"].values.tolist()}

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
            tuple(one.part(evidence) for one in (some(evidence) if callable(some) else some) if one.there(evidence))
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


def depths(threshold: float) -> Callable[[Evidence], Sequence[Values]]:
    """Compare the first block's probe with deeper ones at equal full passes."""
    return lambda evidence: [
        psnr(f"PSNR, depth 0 minus depth {deep.removeprefix(DEEPER)}", "tap N=8", deep, threshold)
        for deep in evidence.cells(DEEPER)
    ]


def price_of_depth(evidence: Evidence) -> list[Values]:
    """Tell what a deeper probe costs, and how it ranks."""

    def price(deep: str) -> Callable[[Evidence], Array]:
        def of(evidence: Evidence) -> Array:
            deeper, usual = evidence.rows([deep, "tap N=8"], "flops")
            return deeper / usual

        return of

    costs = [pure(f"FLOPs of {deep} over those of depth 0", price(deep)) for deep in evidence.cells(DEEPER)]
    return [*costs, *ranks("tap N=8", *evidence.cells(DEEPER, ranked=True))]


def known_of_the_token(space: str, threshold: float) -> Values:
    """Tell which share of what can be known of a token alone its probe knows.

    Own probe minus shuffled, over the truth minus another token's truth. The truth ranks itself with a correlation
    of 1.
    """

    def of(evidence: Evidence) -> Array:
        own, shuffled, other = evidence.rows([f"{name} N=8{space}" for name in ("tap", "shuffled", "other token")],
                                             "spearman")  # fmt: skip
        return (own - shuffled) / (1 - other)

    return pure(f"share known of a token alone, {'output' if space else 'hidden'} space", of, threshold)


def controls_of_ranking(measure: str, name: str) -> list[Values]:
    """List a measure of all rankings at N = 8, in both spaces."""
    by = ("tap", "shuffled", "blind", "table", "other token")
    return [
        *(rank(f"{name}, hidden space, {one}", f"{one} N=8", measure=measure) for one in by),
        *(rank(f"{name}, output space, {one}", f"{one} N=8{OUTPUT}", measure=measure) for one in ("hidden error", *by)),
    ]


def trained_minus_untrained(control: str) -> Callable[[Evidence], Array]:
    """Tell how much more the own probe ranks than a control after training than before, mean over seeds, (image,)."""

    def of(evidence: Evidence) -> Array:
        blank = evidence.untrained["spearman"].mean("weights")
        before = blank.sel(ranker="own") - blank.sel(ranker=control)
        own, other = evidence.rows(["tap N=8", f"{control} N=8"], "spearman")
        return own - other - before.values

    return of


def untrained(ranker: str) -> Values:
    return pure(
        f"rank correlation, untrained, {ranker}",
        lambda evidence: evidence.untrained["spearman"].sel(ranker=ranker).mean("weights").values,
    )


def families(names: Sequence[str], least: float) -> list[Values]:
    """Tell by which share the best predictor of every token gets worse when further families may be chosen from."""

    def share(name: str) -> Callable[[Evidence], Array]:
        def of(evidence: Evidence) -> Array:
            larger, usual = evidence.rows([f"tap N=8 +{name}", "tap N=8"], "least_error")
            return larger / usual - 1

        return of

    return [pure(f"least true error, with {name}, relative change", share(name), least) for name in names]


def by_part(evidence: Evidence) -> list[Values]:
    """Tell the rank correlation of the probe, beyond the table's, at every distance and in every third."""

    def one(name: str, dim: str, label: object) -> Values:
        def of(evidence: Evidence) -> Array:
            found = evidence.ranking[f"spearman_{name_of[dim]}"].sel({dim: label})
            return np.asarray(found.sel(ranker="tap N=8").values - found.sel(ranker="table N=8").values)

        return pure(name, of)

    name_of = {"distance": "at_distance", "phase": "in_phase"}
    at, within = (evidence.ranking[dim].values.tolist() for dim in name_of)
    return [
        *(one(f"probe minus table at k = {k}", "distance", k) for k in at),
        *(one(f"probe minus table in the {name} third of the steps", "phase", name) for name in within),
    ]


def ranked_and_run(evidence: Evidence) -> list[str]:
    """List the settings with the schedule S(8, 3) and TAP's family that were both ranked and run."""
    ranked = [name for name in evidence.ranking["cell"].values.tolist() if "N=8" in name and "+" not in name]
    both = [name for name in ranked if RUN_AS.get(name, name) in evidence.quality["cell"].values]
    if len(both) < 4:
        raise ValueError(f"claims: H12 needs at least four settings that were both ranked and run, got {both}")
    return both


RUN_AS = {"table N=8": "step-table N=8"}


def rank_and_gain(evidence: Evidence) -> Array:
    """Correlate, image by image, over settings; 0 where one of the two is the same everywhere and tells nothing."""
    cells = ranked_and_run(evidence)
    quality = evidence.on_ranked([RUN_AS.get(name, name) for name in cells])  # (cell, image)
    fidelity = np.stack(evidence.rows(cells, "spearman"))
    return np.array([
        0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)
        for a, b in zip(fidelity.T, quality.T, strict=True)
    ])  # fmt: skip


def range_of(axis: int, masks: Sequence[str]) -> Callable[[Evidence], Array]:
    """Tell how far the best mask (axis 0) or predictor (axis 1) is from the worst, (image,).

    Which ones these are is read off the other images, so that noise alone has no range.
    """

    def of(evidence: Evidence) -> Array:
        cells = [f"{predictor} {mask}" for mask in masks for predictor in PREDICTORS]
        table = np.stack(evidence.rows(cells)).reshape(len(masks), len(PREDICTORS), -1)  # (mask, predictor, image)
        means = table.mean(axis=1 - axis)  # (option, image)
        others = means.sum(axis=1, keepdims=True) - means
        image = np.arange(means.shape[1])
        return np.asarray(means[others.argmax(axis=0), image] - means[others.argmin(axis=0), image])

    return of


def mask_over_predictor(name: str, masks: Sequence[str]) -> Values:
    by_mask, by_predictor = range_of(0, masks), range_of(1, masks)
    return Values(name, lambda evidence: by_mask(evidence) - by_predictor(evidence))


def shares_of_variance(evidence: Evidence) -> str:
    """Tell the two-way analysis of the means over images: mask, predictor, interaction."""
    cells = [f"{predictor} {mask}" for mask in MASKS for predictor in PREDICTORS]
    table = np.stack(evidence.rows(cells)).mean(axis=1).reshape(len(MASKS), len(PREDICTORS))
    around = table - table.mean()
    rows, columns = around.mean(axis=1), around.mean(axis=0)
    parts = [len(PREDICTORS) * (rows**2).sum(), len(MASKS) * (columns**2).sum()]
    whole = (around**2).sum()
    names = [*parts, whole - sum(parts)]
    shares = [f"{100 * part / whole:.0f} % {name}" for part, name in zip(names, ("mask", "predictor", "interaction"),
                                                                          strict=True)]  # fmt: skip
    return f"Of the variance of the mean PSNR over masks and predictors: {', '.join(shares)}."


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
        psnr("PSNR, oracle minus order 1, both in output space", "oracle-output N=8", "order1-output N=8"),
        *(
            pure(f"log ratio of {name}, {policy} to order 1", log_ratio(name, policy))
            for policy in evidence.propagation["policy"].values.tolist()
            for name in ("path_length", "coherence", "amplification", "deviation")
            if name in evidence.propagation
        ),
    ]


def wins(_: Evidence, claim: Claim) -> str:
    ahead = claim.parts[-1].values
    wins, count = int((ahead > 0).sum()), len(ahead)
    sign = binomtest(wins, count).pvalue
    return f"At N = 8 TAP is ahead on {wins} of {count} images (sign test p = {sign:.2g})."
