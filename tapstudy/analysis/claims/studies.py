"""Saved studies of claims, judged: of other models, numbers of steps and guidance, to be set beside one another."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from tapstudy.analysis.claims.all_claims import all_claims
from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import Finding, judge
from tapstudy.analysis.study import CHOSEN, load_study


class Study(NamedTuple):
    """Hold what was measured and what follows from it; `title` says of which model and images, `folder` where it is."""

    title: str
    folder: Path
    evidence: Evidence
    findings: list[Finding]


def judged(folder: str | Path) -> Study:
    """Judge the claims by a saved study.

    Raises:
        FileNotFoundError: there is none, or a table is missing.
        ValueError: it lacks a run that a claim is about, as one of an older version may.
    """
    evidence = Evidence(**load_study(folder))
    plan = json.loads(evidence.quality.attrs.get("plan", "{}"))
    title = plan.get("model", Path(folder).name)
    if plan:
        title += f", {plan['steps']} steps, guidance {plan['guidance']:g}"
    try:
        findings = judge(all_claims(evidence))
    except (KeyError, ValueError) as error:
        raise ValueError(f"the study in {folder} cannot be judged: {error}") from error
    return Study(f"{title}, {evidence.quality.sizes['sample']} images", Path(folder), evidence, findings)


def by_title(studies: Iterable[Study]) -> dict[str, list[Finding]]:
    """Return the findings of studies by title; those of one title are told apart by their folders."""
    studies = list(studies)
    often = Counter(study.title for study in studies)
    return {
        study.title if often[study.title] == 1 else f"{study.title}, {study.folder}": study.findings
        for study in studies
    }


def studies_in(folder: str | Path) -> list[Path]:
    """List the saved studies in a folder and right below it."""
    folder = Path(folder)
    return [one.parent for one in (folder / CHOSEN, *sorted(folder.glob(f"*/{CHOSEN}"))) if one.is_file()]
