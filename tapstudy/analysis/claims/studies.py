"""Saved studies of claims, judged: of other models, numbers of steps and guidance, to be set beside one another."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from tapstudy.analysis.claims.all_claims import all_claims
from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import Finding, judge
from tapstudy.analysis.study import CHOSEN, load_study


class Study(NamedTuple):
    """Hold what was measured and what follows from it; `title` says of which model and images."""

    title: str
    evidence: Evidence
    findings: list[Finding]


def judged(folder: str | Path) -> Study:
    """Judge the claims by a saved study.

    Raises:
        FileNotFoundError: there is none.
    """
    evidence = Evidence(**load_study(folder))
    plan = json.loads(evidence.quality.attrs.get("plan", "{}"))
    title = plan.get("model", Path(folder).name)
    if plan:
        title += f", {plan['steps']} steps, guidance {plan['guidance']:g}"
    return Study(f"{title}, {evidence.quality.sizes['sample']} images", evidence, judge(all_claims(evidence)))


def studies_in(folder: str | Path) -> list[Path]:
    """List the saved studies in a folder and right below it."""
    folder = Path(folder)
    return [one.parent for one in (folder / CHOSEN, *sorted(folder.glob(f"*/{CHOSEN}"))) if one.is_file()]
