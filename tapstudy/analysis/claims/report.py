"""The verdicts as a page of Markdown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.analysis.claims.evidence import Evidence
from tapstudy.analysis.claims.finding import ALPHA, MARGIN, Finding, Part
from tapstudy.analysis.stats import mean_interval
from tapstudy.tables import Table

CONTROLS = {
    "fewer": "fewer plain steps",
    "order0": "order 0",
    "order1": "order 1",
    "order2": "order 2",
    "best-fixed": "best fixed predictor",
    "random": "random choice",
    "shuffled": "TAP, losses shuffled across tokens",
    "step": "TAP, one choice per step",
    "tap": "TAP",
    "oracle": "oracle",
}

INTRODUCTION = f"""
A claim is a conjunction of inequalities about means over images, with thresholds fixed before the run. Intervals are
95 % bootstrap intervals over images (seed x label), never over tokens; differences are paired by image. A claim *holds*
if the interval of every inequality lies on the claimed side, *fails* if one lies on the other side, and either only if
its p-value (sign flips over images, adjusted by Holm for all claims of this page) is at most {ALPHA:g}; else it is
*undecided*. "As good as" allows {MARGIN:g} dB. The table shows the inequality that decides. PSNR is of images in
[0, 1] to those of the same noise without acceleration. N is the interval of full steps, after three at the start.
""".strip()


def claims_page(findings: Sequence[Finding], evidence: Evidence, header: Mapping[str, str]) -> str:
    """Return the page: how it was made, all verdicts, the controls, and a section per claim.

    Args:
        findings: from `judge`.
        evidence: what they were judged by.
        header: name -> value of what the reader must know, such as the command and the versions.
    """
    counts = Counter(finding.verdict for finding in findings)
    lines = ["# What holds of TAP on this model", "", *(f"* {name}: {value}" for name, value in header.items())]
    lines += ["", INTRODUCTION, "", "## Verdicts", ""]
    lines += [f"{counts['holds']} hold, {counts['fails']} fail, {counts['undecided']} are undecided.", ""]
    lines.append(Table(
        ["", "claim", "decided by", "threshold", "value [95 %]", "p (Holm)", "verdict"],
        [
            [f.claim.name, f.claim.statement, f.decisive.name, _bound(f.decisive), _value(f.decisive),
             _p(f.adjusted), f"**{f.verdict}**"]
            for f in findings
        ],
    ).markdown())  # fmt: skip
    lines += ["", "## Controls", "", controls_table(evidence).markdown()]
    lines += ["", "Chosen on held-out seeds: " + "; ".join(f"{k}: `{v}`" for k, v in evidence.chosen.items()) + "."]
    for finding in findings:
        lines += ["", *_section(finding)]
    return "\n".join(lines) + "\n"


def controls_table(evidence: Evidence) -> Table:
    """Return PSNR of every control at every interval it was run at."""
    names = evidence.quality["cell"].values.tolist()
    intervals = sorted(int(name.removeprefix("tap N=")) for name in names if re.fullmatch(r"tap N=\d+", name))
    rows = []
    for key, text in CONTROLS.items():
        cells = [f"{key} N={n}" for n in intervals]
        if any(cell in names for cell in cells):
            rows.append([text, *(_psnr(evidence, cell) if cell in names else "" for cell in cells)])
    tap = evidence.quality[["full_passes", "flops_ratio"]].sel(cell=[f"tap N={n}" for n in intervals]).mean("sample")
    rows.insert(0, ["full passes", *(f"{passes:.0f}" for passes in tap["full_passes"].values)])
    rows.insert(
        1, ["FLOPs of the reference over those of TAP", *(f"{ratio:.2f}" for ratio in tap["flops_ratio"].values)]
    )
    return Table(["PSNR, dB", *(f"N = {n}" for n in intervals)], rows)


def _section(finding: Finding) -> list[str]:
    claim = finding.claim
    parts = [
        [part.name, _bound(part), _value(part), {"holds": "yes", "fails": "no"}.get(part.side, "?")]
        for part in claim.parts
    ]
    shown = [[part.name, "", _value(part), ""] for part in claim.shown]
    lines = [f"## {claim.name}: {finding.verdict}", "", claim.statement, "", f"*Measured*: {claim.measure}", ""]
    images = sorted({len(part.values) for part in claim.parts})
    columns = [f"{' or '.join(map(str, images))} images", "claimed", "value [95 %]", ""]
    lines.append(Table(columns, parts + shown).markdown())
    lines += ["", f"p = {_p(claim.pvalue)}, adjusted {_p(finding.adjusted)}. {claim.remark}".rstrip()]
    return lines


def _psnr(evidence: Evidence, cell: str) -> str:
    values: xr.DataArray = evidence.quality["psnr"].sel(cell=cell)
    found = values.values[np.isfinite(values.values)]
    return "{:.1f} [{:.1f}, {:.1f}]".format(*mean_interval(found))


def _bound(part: Part) -> str:
    return f"{'>' if part.above else '<'} {part.threshold:g}{' ' + part.unit if part.unit else ''}"


def _value(part: Part) -> str:
    digits = 2 if part.unit else 3
    mean, low, high = part.interval
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]{' ' + part.unit if part.unit else ''}"


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


BOUNDS = ("mean", "low", "high")


def verdict_table(findings: Sequence[Any]) -> xr.Dataset:
    """Return every claim by the inequality that decides it.

    Args:
        findings: from `judge`: `claim`, `verdict`, `adjusted` and `decisive`, a part with `name`, `interval`,
            `threshold`, `above` and `unit`.

    Returns:
        Over `claim`: `value` (claim, bound), the mean over images with its 95 % interval; `threshold`, `verdict`,
        `statement`, `decided_by`, `unit`, `p_value`; and `distance` (claim, bound): how far value and bounds lie on
        the claimed side of the threshold, over half the width of the interval (NaN if that is 0).
    """
    values = np.array([finding.decisive.interval for finding in findings], dtype=np.float64)  # (claim, bound)
    threshold = np.array([finding.decisive.threshold for finding in findings], dtype=np.float64)
    side = np.where([finding.decisive.above for finding in findings], 1.0, -1.0)
    half = (values[:, 2] - values[:, 1]) / 2
    distance = side[:, None] * (values - threshold[:, None]) / np.where(half > 0, half, np.nan)[:, None]
    below = side < 0
    distance[below] = distance[below][:, [0, 2, 1]]  # what was low is high on the other side
    texts = {
        "verdict": [str(finding.verdict) for finding in findings],
        "statement": [finding.claim.statement for finding in findings],
        "decided_by": [finding.decisive.name for finding in findings],
        "unit": [finding.decisive.unit for finding in findings],
    }
    return xr.Dataset(
        {
            "value": (("claim", "bound"), values),
            "distance": (("claim", "bound"), distance, {"long_name": "distance from the threshold", "units": "1"}),
            "threshold": ("claim", threshold),
            "p_value": ("claim", [finding.adjusted for finding in findings], {"long_name": "p-value (Holm)"}),
            **{name: ("claim", np.array(rows, dtype=object)) for name, rows in texts.items()},
        },
        coords={"claim": [finding.claim.name for finding in findings], "bound": list(BOUNDS)},
    )
