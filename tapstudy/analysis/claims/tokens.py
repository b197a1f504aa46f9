"""Claims about tokens: do they differ, and do the fast ones choose differently?"""

from __future__ import annotations

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import Claim, Part
from tapstudy.analysis.require import require


def token_claims(evidence: Evidence) -> list[Claim]:
    """H8 and H9."""
    names = ("speed_and_order", "speed_and_best_order", "speed_share", "order_share")
    require(evidence.tokens, "claims (tokens)", **dict.fromkeys(names, ("sample",)))
    values = {name: evidence.tokens[name].values for name in names}
    h8 = Claim(
        "H8",
        "Fast tokens choose a higher order.",
        "Spearman correlation across tokens of the residual's speed and the order of the chosen predictor, mean over "
        "skip steps and contexts of an image; exact trajectories, N = 8. Choices that are the same for all tokens of a "
        "step are left out.",
        (Part("correlation of speed and chosen order", values["speed_and_order"], unit=""),),
        shown=(Part("correlation of speed and truly best order", values["speed_and_best_order"], unit=""),),
    )
    h9 = Claim(
        "H9",
        "Tokens of one image have dynamics of their own.",
        "Share of the variance over tokens and steps of an image that lies between the tokens' means, minus its mean "
        "when tokens are shuffled within every step: of the log relative speed of the residual, and of the order of "
        "the truly best predictor.",
        (
            Part("excess share, log relative speed", values["speed_share"], 0.05, unit=""),
            Part("excess share, truly best order", values["order_share"], 0.05, unit=""),
        ),
    )
    return [h8, h9]
