"""Claims about what choosing among predictors brings, against which controls, and where it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import MARGIN, Claim, Part

INTERVALS = (4, 6, 8)
ALL_INTERVALS = (2, 3, 4, 6, 8)
MASKS = ("N=8", "even", "start-dense", "best-mask")
PREDICTORS = ("order0", "order1", "tap", "step")
MEMBERS = ("least-squares", "hermite", "chebyshev", "dmd")


def selection_claims(evidence: Evidence) -> list[Claim]:
    """H4, H5, H7, H10 and H14 to H17."""
    return [make(evidence) for make in (_h4, _h5, _h7, _h10, _h14, _h15, _h16, _h17)]


def _h4(evidence: Evidence) -> Claim:
    gain = {n: evidence.gain(f"tap N={n}", f"best-fixed N={n}") for n in ALL_INTERVALS}
    two, fixed_two, eight, fixed_eight = evidence.psnr("tap N=2", "best-fixed N=2", "tap N=8", "best-fixed N=8")
    pays = [n for n in ALL_INTERVALS if Part("", gain[n]).side == "holds"]
    return Claim(
        "H4",
        "Adaptivity pays only at large intervals.",
        "PSNR of TAP minus that of the one fixed predictor (order and shift) that was best on held-out seeds at the "
        f"same interval. It pays if above 0, and does not if below {MARGIN:g} dB.",
        (
            Part("gain at N = 8", gain[8]),
            Part("gain at N = 8 minus gain at N = 2", eight - fixed_eight - (two - fixed_two)),
            Part("gain at N = 2", gain[2], MARGIN, above=False),
        ),
        shown=tuple(Part(f"gain at N = {n}", gain[n]) for n in ALL_INTERVALS),
        remark=f"The gain is above 0 at N = {', '.join(map(str, pays)) or 'none'}.",
    )


def _h5(evidence: Evidence) -> Claim:
    ahead = {n: evidence.gain(f"tap N={n}", f"oracle N={n}") for n in (4, 8)}
    wins, count = int((ahead[8] > 0).sum()), len(ahead[8])
    sign = binomtest(wins, count).pvalue
    return Claim(
        "H5",
        "The oracle of every single step is no upper bound: TAP ends closer to the reference.",
        "PSNR of TAP minus that of the oracle, which takes for every token the predictor whose residual is truly "
        "closest; same images, N = 4 and 8.",
        tuple(Part(f"PSNR, TAP minus oracle at N = {n}", values) for n, values in ahead.items()),
        shown=(
            Part("PSNR, oracle minus random choice at N = 8", evidence.gain("oracle N=8", "random N=8")),
            Part("PSNR, oracle minus best fixed at N = 8", evidence.gain("oracle N=8", "best-fixed N=8")),
        ),
        remark=f"At N = 8 TAP is ahead on {wins} of {count} images (sign test p = {sign:.2g}).",
    )


def _h7(evidence: Evidence) -> Claim:
    without = {0: "tap N=8 orders=1+2", 1: "tap N=8 orders=0+2", 2: "tap N=8 orders=0+1"}
    return Claim(
        "H7",
        "Order 0 is vital, and a lookback of 4 suffices.",
        "PSNR at N = 8 of the whole family minus that without order 0; of the family without order 1 (2) minus that "
        f"without order 0; with shifts up to 4 minus up to 6 (suffices: at most {MARGIN:g} dB worse).",
        (
            Part("PSNR, all orders minus without order 0", evidence.gain("tap N=8", without[0])),
            Part("PSNR, without order 1 minus without order 0", evidence.gain(without[1], without[0])),
            Part("PSNR, without order 2 minus without order 0", evidence.gain(without[2], without[0])),
            Part("PSNR, shifts to 4 minus to 6", evidence.gain("tap N=8", "tap N=8 lambda=6"), -MARGIN),
        ),
        shown=tuple(
            Part(f"PSNR, all orders minus without order {order}", evidence.gain("tap N=8", cell))
            for order, cell in without.items()
        ),
    )


def _h10(evidence: Evidence) -> Claim:
    return Claim(
        "H10",
        "Least squares, Hermite, Chebyshev and dynamic-mode predictors add nothing to the Taylor family.",
        "PSNR at N = 8 of TAP with the family's predictors added to the Taylor family, minus that without; nothing "
        f"means less than {MARGIN:g} dB.",
        tuple(
            Part(f"PSNR, with {name} minus without", evidence.gain(f"tap N=8 +{name}", "tap N=8"), MARGIN, above=False)
            for name in MEMBERS
        ),
    )


def _h14(evidence: Evidence) -> Claim:
    _same_budget(evidence, ("N=8", "even", "start-dense"))
    tap, order1, first = evidence.psnr("tap N=8", "order1 N=8", "first-window N=8")
    gains = {mask: evidence.gain(f"tap {mask}", f"order1 {mask}") for mask in ("even", "start-dense")}
    return Claim(
        "H14",
        "TAP's gain over order 1 comes from the first window after a warm-up of consecutive steps, whose anchors are "
        "unevenly spaced; at the same number of full steps it vanishes on evenly spaced and on start-dense masks.",
        "PSNR of TAP minus that of order 1. First window: TAP up to the first full step after the warm-up, order 1 "
        f"from there on; it must bring at least 80 % of the gain. Vanishes: less than {MARGIN:g} dB.",
        (
            Part("gain on the usual mask, N = 8", tap - order1),
            Part("gain of the first window minus 80 % of the gain", (first - order1) - 0.8 * (tap - order1)),
            *(Part(f"gain on the {mask} mask", values, MARGIN, above=False) for mask, values in gains.items()),
        ),
        shown=(
            Part("gain of choosing in the first window only", first - order1),
            *evidence.shown("tap even", "order1 even", "tap start-dense", "order1 start-dense"),
        ),
    )


def _h15(evidence: Evidence) -> Claim:
    return Claim(
        "H15",
        "One choice per step does as well as one per token.",
        f"PSNR of one choice per step minus that of TAP; as well means at most {MARGIN:g} dB worse.",
        tuple(
            Part(f"PSNR, per step minus per token at N = {n}", evidence.gain(f"step N={n}", f"tap N={n}"), -MARGIN)
            for n in INTERVALS
        ),
    )


def _h16(evidence: Evidence) -> Claim:
    _same_budget(evidence, MASKS)
    names = [f"{predictor} {mask}" for mask in MASKS for predictor in PREDICTORS]
    table = np.stack(evidence.psnr(*names)).reshape(len(MASKS), len(PREDICTORS), -1)  # (mask, predictor, image)
    by_mask, by_predictor = np.ptp(table.mean(axis=1), axis=0), np.ptp(table.mean(axis=0), axis=0)  # (image,) each
    return Claim(
        "H16",
        "The placement of the full steps matters more than the predictor.",
        f"PSNR of an image under {len(MASKS)} masks ({', '.join(MASKS)}) of equally many full steps times "
        f"{len(PREDICTORS)} predictors ({', '.join(PREDICTORS)}). Range of its means by mask minus range of its means "
        "by predictor.",
        (Part("range by mask minus range by predictor", by_mask - by_predictor),),
        shown=(Part("range by mask", by_mask), Part("range by predictor", by_predictor), *evidence.shown(*names)),
        remark=f"Mask chosen on held-out seeds: {evidence.chosen.get('mask', 'not told')}.",
    )


def _h17(evidence: Evidence) -> Claim:
    log = evidence.propagation.sel(policy="oracle")
    return Claim(
        "H17",
        "Accuracy per step is not what the solver integrates.",
        "Along its own trajectory, the oracle against order 1 at N = 8, as log ratios: sum of the norms of the local "
        "errors (less: more accurate per step), and deviation at the end per such sum (more: accuracy is lost). PSNR "
        "of the oracle that chooses by the error of the model's output minus that of the one that chooses in hidden "
        "space.",
        (
            Part("log ratio of summed local errors", log["path_length"].values, above=False, unit=""),
            Part(
                "log ratio of final deviation per summed error",
                log["deviation"].values - log["path_length"].values,
                unit="",
            ),
            Part("PSNR, oracle in output space minus hidden space", evidence.gain("oracle-latent N=8", "oracle N=8")),
        ),
        shown=(
            Part("PSNR, oracle minus order 1", evidence.gain("oracle N=8", "order1 N=8")),
            Part("PSNR, oracle minus TAP", evidence.gain("oracle N=8", "tap N=8")),
            Part(
                "PSNR, oracle minus order 1, both in output space",
                evidence.gain("oracle-latent N=8", "order1-latent N=8"),
            ),
            *(
                Part(f"log ratio of {name}, {policy} to order 1", evidence.propagation[name].sel(policy=policy).values,
                     unit="")
                for policy in evidence.propagation["policy"].values.tolist()
                for name in ("path_length", "coherence", "amplification", "deviation")
                if name in evidence.propagation
            ),
        ),
    )  # fmt: skip


def _same_budget(evidence: Evidence, masks: Sequence[str]) -> None:
    passes = evidence.quality["full_passes"].mean("sample")
    found = {mask: float(passes.sel(cell=f"tap {mask}")) for mask in masks}
    if len(set(found.values())) > 1:
        raise ValueError(f"claims: the masks must have equally many full steps, got {found}")
