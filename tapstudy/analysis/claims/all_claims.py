"""All claims: what each says, and the inequalities between runs that it stands for.

P1 to P6 are ablations of the TAP paper (arXiv 2603.03792), whose numbers are of FLUX.1-dev unless told otherwise.
"""

from __future__ import annotations

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import MARGIN, Claim
from tapstudy.analysis.claims.hypothesis import (
    ALL_INTERVALS,
    DEEPER,
    MASKS,
    ON_MASKS,
    PREDICTORS,
    TOY,
    Hypothesis,
    Values,
    all_logs,
    at_equal_cost,
    below,
    by_part,
    log_ratio,
    pays,
    psnr,
    pure,
    range_of,
    rank,
    rank_and_gain,
    ranked_and_run,
    ranks,
    token,
    wins,
)
from tapstudy.analysis.require import require

INTERVALS = (4, 6, 8)
TOKENS = ("speed_and_order", "speed_and_best_order", "speed_share", "order_share")
WITHOUT = {0: "tap N=8 orders=1+2", 1: "tap N=8 orders=0+2", 2: "tap N=8 orders=0+1"}
GAINS = [psnr(f"gain at N = {n}", f"tap N={n}", f"best-fixed N={n}") for n in ALL_INTERVALS]

CLAIMS = (
    Hypothesis(
        "H1", "The first layer's probe ranks the predictors.",
        "Spearman correlation of proxy loss and true error over the distinct predictors of a token and step, mean over "
        "tokens, steps and contexts of an image; exact trajectories, N = 8.",
        [rank("rank correlation", "tap N=8", threshold=TOY)],
        [rank("probe's best is truly best", "tap N=8", measure="top1"), *ranks("tap N=4", "tap N=6")],
    ),
    Hypothesis(
        "H2", "The relative L2 distance is a better proxy than the cosine distance.",
        "Paired differences at N = 8: rank correlation and share of tokens whose choice is truly best (exact "
        "trajectories), and PSNR of the images.",
        [
            rank("rank correlation, L2 minus cosine", "tap N=8 l2", "tap N=8"),
            rank("truly best choices, L2 minus cosine", "tap N=8 l2", "tap N=8", measure="top1"),
            psnr("PSNR, L2 minus cosine", "tap N=8 l2", "tap N=8"),
        ],
    ),
    Hypothesis(
        "H3", "What the probe knows belongs to the token, not to the step.",
        "Rank correlation with the token's own probe minus that with the proxy losses shuffled across the tokens of a "
        "step; PSNR of TAP minus that of TAP with shuffled losses, and minus that of one choice per step. N = 8.",
        [
            rank("rank correlation, own minus shuffled", "tap N=8", "shuffled N=8", 0.05),
            psnr("PSNR, TAP minus shuffled", "tap N=8", "shuffled N=8"),
            psnr("PSNR, TAP minus one choice per step", "tap N=8", "step N=8"),
        ],
        [rank("rank correlation, shuffled", "shuffled N=8")],
    ),
    Hypothesis(
        "H4", "Adaptivity pays only at large intervals.",
        "PSNR of TAP minus that of the one fixed predictor (order and shift) that was best on held-out seeds at the "
        f"same interval. It pays if above 0, and does not if below {MARGIN:g} dB.",
        [
            GAINS[-1],
            Values("gain at N = 8 minus gain at N = 2",
                   {"tap N=8": 1, "best-fixed N=8": -1, "tap N=2": -1, "best-fixed N=2": 1}),
            GAINS[0]._replace(threshold=MARGIN, above=False),
        ],
        GAINS,
        pays,
    ),
    Hypothesis(
        "H5", "The oracle of every single step is no upper bound: TAP ends closer to the reference.",
        "PSNR of TAP minus that of the oracle, which takes for every token the predictor whose residual is truly "
        "closest; same images, N = 4 and 8.",
        [psnr(f"PSNR, TAP minus oracle at N = {n}", f"tap N={n}", f"oracle N={n}") for n in (4, 8)],
        [
            psnr("PSNR, oracle minus random choice at N = 8", "oracle N=8", "random N=8"),
            psnr("PSNR, oracle minus best fixed at N = 8", "oracle N=8", "best-fixed N=8"),
        ],
        wins,
    ),
    Hypothesis(
        "H6", "The first block's input is the best probe.",
        "A probe of block d costs d blocks at every skip step. PSNR of TAP with the first block's probe minus that "
        "with the deeper one at N = 8, where the former runs at the least N that costs no more FLOPs (2 % slack).",
        at_equal_cost,
        lambda evidence: ranks("tap N=8", *evidence.cells(DEEPER, ranked=True)),
    ),
    Hypothesis(
        "H7", "Order 0 is vital, and a lookback of 4 suffices.",
        "PSNR at N = 8 of the whole family minus that without order 0; of the family without order 1 (2) minus that "
        f"without order 0; with shifts up to 4 minus up to 6 (suffices: at most {MARGIN:g} dB worse).",
        [
            psnr("PSNR, all orders minus without order 0", "tap N=8", WITHOUT[0]),
            psnr("PSNR, without order 1 minus without order 0", WITHOUT[1], WITHOUT[0]),
            psnr("PSNR, without order 2 minus without order 0", WITHOUT[2], WITHOUT[0]),
            psnr("PSNR, shifts to 4 minus to 6", "tap N=8", "tap N=8 lambda=6", -MARGIN),
        ],
        [psnr(f"PSNR, all orders minus without order {order}", "tap N=8", run) for order, run in WITHOUT.items()],
    ),
    Hypothesis(
        "H8", "Fast tokens choose a higher order.",
        "Spearman correlation across tokens of the residual's speed and the order of the chosen predictor, mean over "
        "skip steps and contexts of an image; exact trajectories, N = 8. Choices that are the same for all tokens of a "
        "step are left out.",
        [token("correlation of speed and chosen order", "speed_and_order")],
        [token("correlation of speed and truly best order", "speed_and_best_order")],
    ),
    Hypothesis(
        "H9", "Tokens of one image have dynamics of their own.",
        "Share of the variance over tokens and steps of an image that lies between the tokens' means, minus its mean "
        "when tokens are shuffled within every step: of the log relative speed of the residual, and of the order of "
        "the truly best predictor.",
        [
            token("excess share, log relative speed", "speed_share", 0.05),
            token("excess share, truly best order", "order_share", 0.05),
        ],
    ),
    Hypothesis(
        "H10", "Least squares, Hermite, Chebyshev and dynamic-mode predictors add nothing to the Taylor family.",
        "PSNR at N = 8 of TAP with the family's predictors added to the Taylor family, minus that without; nothing "
        f"means less than {MARGIN:g} dB.",
        [
            psnr(f"PSNR, with {name} minus without", f"tap N=8 +{name}", "tap N=8", MARGIN, above=False)
            for name in ("least-squares", "hermite", "chebyshev", "dmd")
        ],
    ),
    Hypothesis(
        "H11", "That the probe ranks predictors is a product of training.",
        "Rank correlation on the trained model minus that on the same model with random weights, on the same noise and "
        "labels; exact trajectories, N = 8.",
        [rank("rank correlation, trained minus untrained", "tap N=8", "untrained N=8", 0.1)],
        [rank("rank correlation, untrained", "untrained N=8")],
    ),
    Hypothesis(
        "H12", "Where the probe ranks better, TAP gains more.",
        lambda evidence: f"Spearman correlation across {len(ranked_and_run(evidence))} settings (interval, distance, "
        "probe depth, shuffled losses) of an image's rank correlation and its gain in PSNR over the best fixed "
        "predictor at the same interval.",
        [pure("correlation across settings", rank_and_gain, TOY)],
        remark=lambda evidence, _: "Settings: " + ", ".join(ranked_and_run(evidence)) + ".",
    ),
    Hypothesis(
        "H13", "The probe ranks at every distance from the last full step and in every part of the trajectory.",
        "Rank correlation as in H1, by distance k and by third of the trajectory.",
        by_part,
        remark=below,
    ),
    Hypothesis(
        "H14",
        "TAP's gain over order 1 comes from the first window after a warm-up of consecutive steps, whose anchors are "
        "unevenly spaced; at the same number of full steps it vanishes on evenly spaced and on start-dense masks.",
        "PSNR of TAP minus that of order 1. First window: TAP up to the first full step after the warm-up, order 1 "
        f"from there on; it must bring at least 80 % of the gain. Vanishes: less than {MARGIN:g} dB.",
        [
            psnr("gain on the usual mask, N = 8", "tap N=8", "order1 N=8"),
            Values("gain of the first window minus 80 % of the gain",
                   {"first-window N=8": 1, "order1 N=8": -0.2, "tap N=8": -0.8}),
            *(psnr(f"gain on the {mask} mask", f"tap {mask}", f"order1 {mask}", MARGIN, above=False)
              for mask in ("even", "start-dense")),
        ],
        [
            psnr("gain of choosing in the first window only", "first-window N=8", "order1 N=8"),
            *(psnr(f"PSNR of {run}", run) for run in ("tap even", "order1 even", "tap start-dense",
                                                      "order1 start-dense")),
        ],
    ),
    Hypothesis(
        "H15", "One choice per step does as well as one per token.",
        f"PSNR of one choice per step minus that of TAP; as well means at most {MARGIN:g} dB worse.",
        [psnr(f"PSNR, per step minus per token at N = {n}", f"step N={n}", f"tap N={n}", -MARGIN) for n in INTERVALS],
    ),
    Hypothesis(
        "H16", "The placement of the full steps matters more than the predictor.",
        f"PSNR of an image under {len(MASKS)} masks ({', '.join(MASKS)}) of equally many full steps times "
        f"{len(PREDICTORS)} predictors ({', '.join(PREDICTORS)}). Range of its means by mask minus range of its means "
        "by predictor.",
        [Values("range by mask minus range by predictor", lambda tables: range_of(1)(tables) - range_of(0)(tables))],
        [Values("range by mask", range_of(1)), Values("range by predictor", range_of(0)),
         *(psnr(f"PSNR of {run}", run) for run in ON_MASKS)],
        lambda evidence, _: f"Mask chosen on held-out seeds: {evidence.chosen.get('mask', 'not told')}.",
    ),
    Hypothesis(
        "H17", "Accuracy per step is not what the solver integrates.",
        "Along its own trajectory, the oracle against order 1 at N = 8, as log ratios: sum of the norms of the local "
        "errors (less: more accurate per step), and deviation at the end per such sum (more: accuracy is lost). PSNR "
        "of the oracle that chooses by the error of the model's output minus that of the one that chooses in hidden "
        "space.",
        [
            pure("log ratio of summed local errors", log_ratio("path_length"), above=False),
            pure("log ratio of final deviation per summed error", log_ratio("deviation", per="path_length")),
            psnr("PSNR, oracle in output space minus hidden space", "oracle-latent N=8", "oracle N=8"),
        ],
        all_logs,
    ),
    Hypothesis(
        "P1", "The orders {0, 1, 2} together beat every single order.",
        "PSNR at N = 8 of TAP with orders 0 to 2 at horizon k minus that of one order at horizon k for all tokens.",
        [psnr(f"PSNR, orders 0 to 2 minus order {m}", "tap N=8 lambda=0", f"order{m} N=8") for m in (0, 1, 2)],
        [psnr(f"PSNR, TAP minus order {m} with shifts", "tap N=8", f"tap N=8 orders={m}") for m in (1, 2)],
        "Published: ImageReward about .95 against .89 with order 2 alone.",
    ),
    Hypothesis(
        "P2", "Choosing the horizon as well beats horizon k alone.",
        "PSNR at N = 8 of TAP with shifts 0 to 4 minus that with shift 0 only.",
        [psnr("PSNR, shifts 0 to 4 minus shift 0", "tap N=8", "tap N=8 lambda=0")],
        remark="Published: ImageReward about .99 against .95.",
    ),
    Hypothesis(
        "P3", "Shifts up to 4 in steps of 1 suffice.",
        f"PSNR at N = 8 minus that with more shifts; suffice means at most {MARGIN:g} dB worse.",
        [
            psnr(f"PSNR, usual shifts minus {name}", "tap N=8", f"tap N=8 {name}", -MARGIN)
            for name in ("lambda=6", "delta=0.5", "delta=0.1")
        ],
        [psnr("PSNR, usual shifts minus lambda=2", "tap N=8", "tap N=8 lambda=2")],
        "Published: ImageReward about .995 in steps of 0.1 against .99.",
    ),
    Hypothesis(
        "P4", "The probe of the first layer suffices.",
        "PSNR with the first block's probe minus that with a deeper one, both at N = 8 whatever the deeper one costs; "
        f"suffices means at most {MARGIN:g} dB worse.",
        lambda evidence: [
            psnr(f"PSNR, depth 0 minus depth {deep.removeprefix(DEEPER)}", "tap N=8", deep, -MARGIN)
            for deep in evidence.cells(DEEPER)
        ],
    ),
    Hypothesis(
        "P5", "The cosine distance is as good as others.",
        f"PSNR with the cosine distance minus that with others at N = 8; as good means at most {MARGIN:g} dB worse.",
        [psnr(f"PSNR, cosine minus {name}", "tap N=8", f"tap N=8 {name}", -MARGIN) for name in ("l2", "l1")],
        ranks("tap N=8", "tap N=8 l2", "tap N=8 l1"),
    ),
    Hypothesis(
        "P6", "At N = 4, 6 and 8 TAP ends closer to the reference than TaylorSeer.",
        "PSNR of TAP minus that of the order-2 Taylor predictor, the paper's setting, on the same residual and mask.",
        [psnr(f"PSNR, TAP minus order 2 at N = {n}", f"tap N={n}", f"order2 N={n}") for n in INTERVALS],
        [psnr(f"PSNR, TAP minus order 1 at N = {n}", f"tap N={n}", f"order1 N={n}") for n in INTERVALS],
        "Published PSNR: 16.11 against 14.72 dB (FLUX.1-dev, N = 8), 20.13 against 18.02 dB (Qwen-Image, "
        "N = 4); VBench 65.46 against 64.89 (HunyuanVideo, N = 6).",
    ),
)  # fmt: skip


def all_claims(evidence: Evidence) -> list[Claim]:
    """Test H1 to H17 and P1 to P6.

    Raises:
        ValueError: a run or a table that a claim needs is missing.
    """
    require(evidence.tokens, "claims (tokens)", **dict.fromkeys(TOKENS, ("sample",)))
    passes = evidence.quality["full_passes"].mean("sample")
    found = {mask: float(passes.sel(cell=f"tap {mask}")) for mask in MASKS}
    if len(set(found.values())) > 1:
        raise ValueError(f"claims: the masks must have equally many full steps, got {found}")
    return [claim.tested(evidence) for claim in CLAIMS]
