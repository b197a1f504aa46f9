"""All claims: what each says, and the inequalities between runs that it stands for.

H1 to H17 are ours; C1 to C5 are about the clock, the table and the order of methods, S1 and S2 about what can be
chosen; P1 to P6 are ablations of the TAP paper (arXiv 2603.03792), whose numbers are of FLUX.1-dev unless told
otherwise.
"""

from __future__ import annotations

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import MARGIN, Claim
from tapstudy.analysis.claims.hypothesis import (
    MASKS,
    PREDICTORS,
    TOY,
    Hypothesis,
    Values,
    all_logs,
    by_part,
    controls_of_ranking,
    depths,
    families,
    known_of_the_token,
    log_ratio,
    mask_over_predictor,
    price_of_depth,
    psnr,
    pure,
    range_of,
    rank,
    rank_and_gain,
    ranked_and_run,
    ranks,
    shares_of_variance,
    token,
    trained_minus_untrained,
    untrained,
    wins,
)
from tapstudy.analysis.claims.measure import OUTPUT
from tapstudy.analysis.require import require

INTERVALS = (4, 6, 8)
TOKENS = ("speed_and_order", "speed_and_best_order", "speed_share", "order_share")
TOWARD_REFERENCE = [
    psnr(f"PSNR, toward the reference, per token minus per step, {on}", f"oracle-reference {on}",
         f"oracle-reference-step {on}").if_there()
    for on in ("N=8", "best")
]  # fmt: skip
WITHOUT = {0: "tap N=8 orders=1+2", 1: "tap N=8 orders=0+2", 2: "tap N=8 orders=0+1"}

CLAIMS = (
    Hypothesis(
        "H1", "The first layer's probe ranks the predictors better than what needs no probe of the image.",
        "Spearman correlation of proxy loss and true error of the residual over the distinct predictors of a token and "
        "step, mean over tokens, steps and contexts of an image; exact trajectories, N = 8. Against it: a table (mean "
        "true error of every predictor and step over held-out images) and the image-blind probe (mean over held-out "
        "images and tokens).",
        [
            rank("rank correlation, probe", "tap N=8", threshold=TOY),
            rank("rank correlation, probe minus table", "tap N=8", "table N=8"),
            rank("rank correlation, probe minus image-blind probe", "tap N=8", "blind N=8"),
        ],
        [*controls_of_ranking("spearman", "rank correlation"), *controls_of_ranking("top1", "truly best choices"),
         *controls_of_ranking("normalised_regret", "regret of the choice (0 best, 1 random)"),
         *ranks("tap N=4", "tap N=6")],
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
        "Share of what can be known of a token alone: rank correlation with the token's own probe minus that with "
        "the losses of another token of its step, over 1 minus that with the true errors of another token. N = 8, by "
        "the error of the hidden residual and by that of the model's output.",
        [known_of_the_token("", 0.1), known_of_the_token(OUTPUT, 0.1)],
        [rank("rank correlation, own minus shuffled, hidden space", "tap N=8", "shuffled N=8"),
         rank("rank correlation, own minus shuffled, output space", "tap N=8 output", "shuffled N=8 output")],
    ),
    Hypothesis(
        "H4", "Adaptivity pays at large intervals, wherever the full steps are, and not at small ones.",
        "PSNR of TAP minus that of the one predictor of its family (plain orders among them) that is best on held-out "
        "images with the same full steps; as many full steps as S(8, 3) where no N is told. It pays if above 0, and "
        f"does not if below {MARGIN:g} dB.",
        [
            psnr("gain at N = 8", "tap N=8", "best-fixed N=8"),
            psnr("gain on the even mask", "tap even", "best-fixed even"),
            psnr("gain on the start-dense mask", "tap start-dense", "best-fixed start-dense"),
            psnr("gain at N = 4", "tap N=4", "best-fixed N=4", MARGIN, above=False),
        ],
    ),
    Hypothesis(
        "H5", "The oracle of every single step is no upper bound: TAP ends closer to the reference.",
        "PSNR of TAP minus that of the oracle in hidden space, which takes for every token the predictor whose "
        "residual is truly closest; same images, N = 4 and 8. Oracles in output space take the predictor of the "
        "output's residual. Toward the reference, if shown: a greedy choice that no method has, what ends the step "
        "nearest to the unaccelerated sampler's state, on the output, the same for both guidance branches.",
        [psnr(f"PSNR, TAP minus hidden oracle at N = {n}", f"tap N={n}", f"oracle N={n}") for n in (4, 8)],
        [
            psnr("PSNR, hidden oracle minus random choice at N = 8", "oracle N=8", "random N=8"),
            psnr("PSNR, hidden oracle minus best fixed at N = 8", "oracle N=8", "best-fixed N=8"),
            psnr("PSNR, hidden oracle, per token minus per step", "oracle N=8", "oracle-step N=8"),
            psnr("PSNR, output oracle, per token minus per step", "oracle-output N=8", "oracle-output-step N=8"),
            psnr("PSNR, output oracle minus TAP in output space", "oracle-output N=8", "tap-output N=8"),
            psnr("PSNR, oracle toward the reference minus TAP", "oracle-reference N=8", "tap N=8").if_there(),
        ],
        wins,
    ),
    Hypothesis(
        "H6", "The first block's input is the best probe.",
        "PSNR of TAP with the first block's probe minus that with a deeper one, at equal full passes (N = 8). What the "
        "deeper one costs, d more blocks at every skip step, is told apart.",
        depths(0.0),
        price_of_depth,
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
        "H10", "Least squares, Hermite and Chebyshev predictors add nothing to the Taylor family.",
        "True error of the best predictor of every token with the family's predictors added, relative change; exact "
        "trajectories, N = 8; nothing means less than 5 %. So the families are compared, not who chooses from them; "
        "what TAP makes of them is shown.",
        families(("least-squares", "hermite", "chebyshev"), -0.05),
        [*(psnr(f"PSNR, TAP with {name} minus without", f"tap N=8 +{name}", "tap N=8")
           for name in ("least-squares", "hermite", "chebyshev", "dmd")),
         *(psnr(f"PSNR, {name} alone minus best fixed", f"{name} N=8", "best-fixed N=8")
           for name in ("hermite", "chebyshev", "dmd"))],
    ),
    Hypothesis(
        "H11", "That the probe knows more than a control is a product of training.",
        "How much better the own probe ranks than a control, on the trained model minus on the same model with random "
        "weights (mean of their seeds), on the same noise and labels; exact trajectories, N = 8. Controls: losses "
        "shuffled over tokens, and a table of other images.",
        [pure(f"own minus {control}, trained minus untrained", trained_minus_untrained(control))
         for control in ("shuffled", "table")],
        [untrained(ranker) for ranker in ("own", "shuffled", "table")],
    ),
    Hypothesis(
        "H12", "What ranks better makes better images.",
        lambda evidence: f"Spearman correlation across {len(ranked_and_run(evidence))} ways to choose on S(8, 3) "
        "(distances, probe depths, shuffled losses, a table) of an image's rank correlation and its PSNR. One schedule "
        "only: across intervals both fall, whatever ranks.",
        [pure("correlation across settings", rank_and_gain, TOY)],
        remark=lambda evidence, _: "Settings: " + ", ".join(ranked_and_run(evidence)) + ".",
    ),
    Hypothesis(
        "H13", "At every distance from the last full step, and in every part of the trajectory, the probe ranks better "
        "than a table.",
        "Rank correlation as in H1, probe minus table, by distance k and by third of the trajectory.",
        by_part,
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
        f"PSNR under {len(MASKS)} masks ({', '.join(MASKS)}) of equally many full steps times {len(PREDICTORS)} "
        f"predictors ({', '.join(PREDICTORS)}). How far the best mask lies above the worst, minus the same of "
        "predictors; which these are is read off the other images. With S(8, 3) and without.",
        [mask_over_predictor("range by mask minus range by predictor", MASKS),
         mask_over_predictor("the same without S(8, 3)", MASKS[1:])],
        [Values("range by mask", range_of(0, MASKS)), Values("range by predictor", range_of(1, MASKS)),
         *(psnr(f"PSNR of {predictor} {mask}", f"{predictor} {mask}") for mask in MASKS for predictor in PREDICTORS)],
        lambda evidence, _: shares_of_variance(evidence),
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
            psnr("PSNR, oracle in output space minus hidden space", "oracle-output N=8", "oracle N=8"),
        ],
        all_logs,
    ),
    Hypothesis(
        "C1", "Order 2 fails on S(8, 3) because the model is rough in time.",
        "PSNR to the unedited model's images at N = 8. It fails: order 2 is more than 3 dB behind order 1. Because: a "
        "low-pass of the clock, which changes nothing else, brings it more than half of that.",
        [
            psnr("PSNR, order 1 minus order 2", "order1 N=8", "order2 N=8", 3.0),
            Values("gain of order 2 by the low-pass minus half of the gap",
                   {"order2 N=8 smooth": 1, "order2 N=8": -0.5, "order1 N=8": -0.5}),
        ],
        [psnr(f"PSNR, {run} smoothed minus not", f"{run} N=8 smooth", f"{run} N=8")
         for run in ("order0", "order1", "order2", "tap")],
    ),
    Hypothesis(
        "C2", "A low-pass of the clock raises TAP's PSNR to the unedited model's images at equal full passes.",
        "PSNR with the timestep features averaged over a Gaussian minus that without, both to the images of the model "
        "as it is. Its width is the one (of 10 to 60 units of time) that is best for TAP at N = 8 on held-out images.",
        [psnr(f"PSNR, TAP smoothed minus not, {on}", f"tap {on} smooth", f"tap {on}")
         for on in (*(f"N={n}" for n in INTERVALS), "best")],
        [*(psnr(f"PSNR, TAP smoothed minus not, {on}", f"tap {on} smooth", f"tap {on}")
           for on in ("even", "start-dense")),
         *(psnr(f"PSNR, order 1 smoothed minus not, {on}", f"order1 {on} smooth", f"order1 {on}")
           for on in ("N=8", "even", "start-dense", "best")),
         psnr("PSNR of all steps, smoothed", "reference smooth")],
    ),
    Hypothesis(
        "C3", "TAP beats a table of predictors, one for every step, made from other images.",
        "PSNR of TAP minus that of the member of its family that is best at each step on held-out images; same full "
        "steps.",
        [psnr(f"PSNR, TAP minus table, {on}", f"tap {on}", f"step-table {on}")
         for on in ("N=8", "even", "start-dense")],
        [*(psnr(f"PSNR, TAP minus table, {on}", f"tap {on}", f"step-table {on}") for on in ("N=4", "N=6", "best")),
         psnr("PSNR, TAP minus table, both in output space", "tap-output N=8", "step-table-output N=8"),
         psnr("PSNR, table in output space minus TAP", "step-table-output N=8", "tap N=8")],
    ),
    Hypothesis(
        "C4", "The published order holds: FORA (order 0) below TaylorSeer (order 2) below TAP.",
        "PSNR at the same N, on the same residual.",
        [
            *(psnr(f"PSNR, order 2 minus order 0 at N = {n}", f"order2 N={n}", f"order0 N={n}") for n in INTERVALS),
            *(psnr(f"PSNR, TAP minus order 2 at N = {n}", f"tap N={n}", f"order2 N={n}") for n in INTERVALS),
        ],
        [psnr(f"PSNR, order 2 minus order 0, {on}", f"order2 {on}", f"order0 {on}") for on in ("even", "start-dense")],
        "Published on FLUX.1-dev, SD3.5, Qwen-Image and HunyuanVideo.",
    ),
    Hypothesis(
        "C5", "Choosing for every token gains.",
        "PSNR of TAP minus that of TAP with its losses shuffled over the tokens, and minus that of one choice per "
        "step; as many full steps as S(8, 3).",
        [psnr(f"PSNR, TAP minus {text}, {on}", f"tap {on}", f"{control} {on}")
         for on in ("N=8", "even") for control, text in (("shuffled", "shuffled"), ("step", "one choice per step"))],
        [psnr(f"PSNR, TAP minus {text}, {on}", f"tap {on}", f"{control} {on}")
         for on in ("N=4", "N=6", "start-dense", "best")
         for control, text in (("shuffled", "shuffled"), ("step", "one choice per step"))],
    ),
    Hypothesis(
        "S1", "A method, full steps and a clock chosen together end 8 dB closer than TAP on S(8, 3).",
        "PSNR to the unedited model's images, at as many full passes, minus that of TAP on S(8, 3). Chosen on held-out "
        "images of TAP, TAP and order 1 on the output, TAP by the filtered input, order 1, rows for classes of tokens, "
        "fitted rows, a table and TAP that minimises drift; "
        "even, start-dense and the best mask; with the low-pass and without.",
        [psnr("PSNR, selected minus TAP on S(8, 3)", "selected", "tap N=8", 8.0)],
        [psnr("PSNR of what was selected", "selected"), psnr("PSNR of TAP on S(8, 3)", "tap N=8"),
         psnr("PSNR, selected minus best fixed where the token selector is best", "selected", "token selector fixed")],
        lambda evidence, _: f"Selected: {evidence.chosen.get('selected', 'not told')}.",
    ),
    Hypothesis(
        "S2", "A choice that knows the tokens ends 1 dB closer than the best fixed predictor.",
        "PSNR of the best of TAP, TAP on the output, TAP by the filtered input and rows for classes of tokens, on the "
        "full steps and the clock that are best for it, minus that of the one predictor of TAP's family that is best "
        "there, all on held-out images; and minus its own with losses, or classes, shuffled over tokens. As many full "
        "passes as S(8, 3).",
        [psnr("PSNR, token selector minus best fixed", "token selector", "token selector fixed", 1.0),
         psnr("PSNR, token selector minus its shuffled self", "token selector", "token selector shuffled")],
        [psnr("PSNR, hidden oracle per token minus per step, N = 8", "oracle N=8", "oracle-step N=8"),
         psnr("PSNR, output oracle per token minus per step, best mask", "oracle-output best",
              "oracle-output-step best"),
         *TOWARD_REFERENCE],
        lambda evidence, _: f"Token selector: {evidence.chosen.get('token selector', 'not told')}; fixed: "
        f"{evidence.chosen.get('token selector fixed', 'not told')}. The oracles and the choice toward the "
        "reference (see H5), which no method has, tell what knowing more would be worth to a greedy choice for every "
        "token, against one for every step; they are no bounds.",
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
        depths(-MARGIN),
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
    """Test H1 to H17, C1 to C5, S1, S2 and P1 to P6.

    Raises:
        ValueError: a run or a table that a claim needs is missing.
    """
    require(evidence.tokens, "claims (tokens)", **dict.fromkeys(TOKENS, ("sample",)))
    passes = evidence.quality["full_passes"].mean("sample")
    found = {mask: float(passes.sel(cell=f"tap {mask}")) for mask in MASKS}
    if len(set(found.values())) > 1:
        raise ValueError(f"claims: the masks must have equally many full steps, got {found}")
    return [claim.tested(evidence) for claim in CLAIMS]
