"""Claims about the probe: does it rank the predictors, where, and thanks to what?"""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from tapstudy.analysis.claims.evidence import Array, Evidence
from tapstudy.analysis.claims.finding import MARGIN, Claim, Part

# Rank correlations: 0.33 in the toy of Latent-TAP, 0.77 in its small trained transformers.
TOY = 0.3
DEEPER = "tap N=8 depth="
FASTER = tuple(range(8, 1, -1))


def probe_claims(evidence: Evidence) -> list[Claim]:
    """H1, H2, H3, H6, H11, H12 and H13."""
    return [make(evidence) for make in (_h1, _h2, _h3, _h6, _h11, _h12, _h13)]


def _h1(evidence: Evidence) -> Claim:
    (rank,), (top1,) = evidence.rank("tap N=8"), evidence.rank("tap N=8", measure="top1")
    return Claim(
        "H1",
        "The first layer's probe ranks the predictors.",
        "Spearman correlation of proxy loss and true error over the distinct predictors of a token and step, mean over "
        "tokens, steps and contexts of an image; exact trajectories, N = 8.",
        (_correlation("rank correlation", rank, TOY),),
        shown=(_correlation("probe's best is truly best", top1), *_ranks(evidence, "tap N=4", "tap N=6")),
    )


def _h2(evidence: Evidence) -> Claim:
    l2, cosine = evidence.rank("tap N=8 l2", "tap N=8")
    top_l2, top_cosine = evidence.rank("tap N=8 l2", "tap N=8", measure="top1")
    return Claim(
        "H2",
        "The relative L2 distance is a better proxy than the cosine distance.",
        "Paired differences at N = 8: rank correlation and share of tokens whose choice is truly best (exact "
        "trajectories), and PSNR of the images.",
        (
            _correlation("rank correlation, L2 minus cosine", l2 - cosine),
            _correlation("truly best choices, L2 minus cosine", top_l2 - top_cosine),
            Part("PSNR, L2 minus cosine", evidence.gain("tap N=8 l2", "tap N=8")),
        ),
    )


def _h3(evidence: Evidence) -> Claim:
    own, shuffled = evidence.rank("tap N=8", "shuffled N=8")
    return Claim(
        "H3",
        "What the probe knows belongs to the token, not to the step.",
        "Rank correlation with the token's own probe minus that with the proxy losses shuffled across the tokens of a "
        "step; PSNR of TAP minus that of TAP with shuffled losses, and minus that of one choice per step. N = 8.",
        (
            _correlation("rank correlation, own minus shuffled", own - shuffled, 0.05),
            Part("PSNR, TAP minus shuffled", evidence.gain("tap N=8", "shuffled N=8")),
            Part("PSNR, TAP minus one choice per step", evidence.gain("tap N=8", "step N=8")),
        ),
        shown=(_correlation("rank correlation, shuffled", shuffled),),
    )


def _h6(evidence: Evidence) -> Claim:
    pairs = [(deep, equal_cost(evidence, deep)) for deep in evidence.cells(DEEPER)]
    return Claim(
        "H6",
        "The first block's input is the best probe.",
        "A probe of block d costs d blocks at every skip step. PSNR of TAP with the first block's probe minus that "
        "with the deeper one at N = 8, where the former runs at the least N that costs no more FLOPs (2 % slack).",
        tuple(Part(f"PSNR, {cheap} minus {deep}", evidence.gain(cheap, deep)) for deep, cheap in pairs),
        shown=_ranks(evidence, "tap N=8", *evidence.cells(DEEPER, ranked=True)),
    )


def equal_cost(evidence: Evidence, cell: str) -> str:
    """The TAP run with the first block's probe and the least interval that costs at most 2 % more than `cell`."""
    known = evidence.quality["cell"].values.tolist()
    names = [f"tap N={n}" for n in FASTER if f"tap N={n}" in known]
    within = [name for name in names if evidence.flops(name) <= 1.02 * evidence.flops(cell)]
    if not within:
        raise ValueError(f"claims: no run of TAP costs as little as {cell!r}: there are {names}")
    return within[-1]


def _h11(evidence: Evidence) -> Claim:
    trained, untrained = evidence.rank("tap N=8", "untrained N=8")
    return Claim(
        "H11",
        "That the probe ranks predictors is a product of training.",
        "Rank correlation on the trained model minus that on the same model with random weights, on the same noise and "
        "labels; exact trajectories, N = 8.",
        (_correlation("rank correlation, trained minus untrained", trained - untrained, 0.1),),
        shown=(_correlation("rank correlation, untrained", untrained),),
    )


def _h12(evidence: Evidence) -> Claim:
    both = [name for name in evidence.ranking["cell"].values.tolist() if name in evidence.quality["cell"].values]
    cells = [name for name in both if name.startswith(("tap ", "shuffled "))]
    if len(cells) < 4:
        raise ValueError(f"claims: H12 needs at least four settings that were both ranked and run, got {cells}")
    # (cell, image) each
    gain = evidence.on_ranked(cells) - evidence.on_ranked([f"best-fixed {name.split()[1]}" for name in cells])
    fidelity = np.stack(evidence.rank(*cells))
    values = np.array([_rank_correlation(fidelity[:, image], gain[:, image]) for image in range(gain.shape[1])])
    return Claim(
        "H12",
        "Where the probe ranks better, TAP gains more.",
        f"Spearman correlation across {len(cells)} settings (interval, distance, probe depth, shuffled losses) of an "
        "image's rank correlation and its gain in PSNR over the best fixed predictor at the same interval.",
        (_correlation("correlation across settings", values, TOY),),
        remark="Settings: " + ", ".join(cells) + ".",
    )


def _h13(evidence: Evidence) -> Claim:
    by_distance, by_phase = evidence.ranking["spearman_at_distance"], evidence.ranking["spearman_in_phase"]
    distances = [
        _correlation(f"rank correlation at k = {k}", by_distance.sel(distance=k).values, TOY)
        for k in by_distance["distance"].values.tolist()
    ]
    phases = [
        _correlation(f"rank correlation in the {name} third of the steps", by_phase.sel(phase=name).values, TOY)
        for name in by_phase["phase"].values.tolist()
    ]
    return Claim(
        "H13",
        "The probe ranks at every distance from the last full step and in every part of the trajectory.",
        "Rank correlation as in H1, by distance k and by third of the trajectory.",
        (*distances, *phases),
        remark=_stops(distances),
    )


def _stops(parts: list[Part]) -> str:
    below = [part.name.removeprefix("rank correlation at ") for part in parts if part.side == "fails"]
    return f"Below {TOY:g} at {', '.join(below)}." if below else f"At no distance is it shown to be below {TOY:g}."


def cosine_margin(evidence: Evidence) -> Claim:
    """P5."""
    return Claim(
        "P5",
        "The cosine distance is as good as others.",
        f"PSNR with the cosine distance minus that with others at N = 8; as good means at most {MARGIN:g} dB worse.",
        tuple(
            Part(f"PSNR, cosine minus {name}", evidence.gain("tap N=8", f"tap N=8 {name}"), -MARGIN)
            for name in ("l2", "l1")
        ),
        shown=_ranks(evidence, "tap N=8", "tap N=8 l2", "tap N=8 l1"),
    )


def first_layer_suffices(evidence: Evidence) -> Claim:
    """P4."""
    return Claim(
        "P4",
        "The probe of the first layer suffices.",
        f"PSNR with the first block's probe minus that with a deeper one, both at N = 8 whatever the deeper one costs; "
        f"suffices means at most {MARGIN:g} dB worse.",
        tuple(
            Part(f"PSNR, depth 0 minus depth {deep.removeprefix(DEEPER)}", evidence.gain("tap N=8", deep), -MARGIN)
            for deep in evidence.cells(DEEPER)
        ),
    )


def _ranks(evidence: Evidence, *cells: str) -> tuple[Part, ...]:
    return tuple(
        _correlation(f"rank correlation, {cell}", values)
        for cell, values in zip(cells, evidence.rank(*cells), strict=True)
    )


def _correlation(name: str, values: Array, threshold: float = 0.0) -> Part:
    return Part(name, values, threshold, unit="")


def _rank_correlation(a: Array, b: Array) -> float:
    """0 where one of the two is the same everywhere: it then says nothing about the other."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a, b).statistic)
