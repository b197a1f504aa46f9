"""All claims, in the order of their names."""

from __future__ import annotations

import re

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import Claim
from tapstudy.analysis.claims.paper import paper_claims
from tapstudy.analysis.claims.probe import probe_claims
from tapstudy.analysis.claims.selection import selection_claims
from tapstudy.analysis.claims.tokens import token_claims


def all_claims(evidence: Evidence) -> list[Claim]:
    """H1 to H17 and P1 to P6.

    Raises:
        ValueError: a run or a table that a claim needs is missing.
    """
    found = [make(evidence) for make in (probe_claims, token_claims, selection_claims, paper_claims)]
    return sorted((claim for claims in found for claim in claims), key=lambda claim: _order(claim.name))


def _order(name: str) -> tuple[str, int]:
    letter, number = re.fullmatch(r"([A-Z])(\d+)", name).groups()  # type: ignore[union-attr]
    return letter, int(number)
