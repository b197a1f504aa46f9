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
from tapstudy.analysis.run_tables import gains, placements
from tapstudy.analysis.stats import BOUNDS, mean_interval
from tapstudy.tables import Table, interval_text

CONTROLS = {
    "fewer": "fewer plain steps",
    "order0": "order 0",
    "order1": "order 1",
    "order2": "order 2",
    "best-fixed": "best fixed predictor",
    "step-table": "table: one predictor per step",
    "random": "random choice",
    "shuffled": "TAP, losses shuffled across tokens",
    "step": "TAP, one choice per step",
    "tap": "TAP",
    "oracle": "oracle",
    "oracle-reference": "toward the reference",
    "oracle-reference-step": "toward the reference, one choice per step",
}

# what images are compared by, and how many digits are shown
DISTANCES = {
    "psnr": ("PSNR, dB", 1), "psnr_fine": ("PSNR to the finer reference, dB", 1), "ssim": ("SSIM", 3),
    "perceptual": ("perceptual distance", 4), "correct": ("label accuracy", 3),
}  # fmt: skip
PLACES = {"N=8": "S(8, 3)", "even": "even", "start-dense": "start-dense", "best": "best"}
AT_PLACES = {
    "order0": "order 0", "order1": "order 1", "order2": "order 2", "best-fixed": "best fixed predictor",
    "step-table": "table", "shuffled": "TAP, shuffled", "step": "TAP, one choice per step", "tap": "TAP",
    "oracle-reference": "toward the reference", "oracle-reference-step": "toward the reference, per step",
    "order1 {} smooth": "order 1, low-pass", "tap {} smooth": "TAP, low-pass",
}  # fmt: skip

INTRODUCTION = f"""
A claim is a conjunction of inequalities about means over images, with thresholds fixed before the run. Intervals are
95 % bootstrap intervals over images (seed x label), never over tokens; differences are paired by image. A claim *holds*
if the interval of every inequality lies on the claimed side, *fails* if one lies on the other side, and either only if
its p-value (sign flips over images, adjusted by Holm for all claims of this page) is at most {ALPHA:g}; else it is
*undecided*. "As good as" allows {MARGIN:g} dB. The table shows the inequality that decides. PSNR is of images in
[0, 1] to those of the same noise without acceleration. N is the interval of full steps, after three at the start.
""".strip()


def claims_page(
    findings: Sequence[Finding],
    evidence: Evidence,
    header: Mapping[str, str],
    beside: Mapping[str, Sequence[Finding]] | None = None,
) -> str:
    """Return the page: how it was made, all verdicts, the controls, and a section per claim.

    Args:
        findings: from `judge`.
        evidence: what they were judged by.
        header: name -> value of what the reader must know, such as the command and the versions.
        beside: name of another study -> its findings, whose verdicts are set beside.
    """
    counts = Counter(finding.verdict for finding in findings)
    lines = [
        f"# What holds of TAP on {header.get('Model', 'this model').split(',')[0]}",
        "",
        *(f"* {name}: {value}" for name, value in header.items()),
    ]
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
    if beside:
        lines += ["", "## Beside other studies", "", _beside(findings, beside).markdown()]
    lines += ["", "## Controls", "", controls_table(evidence).markdown()]
    lines += ["", f"With as many full passes as S(8, 3) ({_passes(evidence):.0f}), by where they are; PSNR, dB:", ""]
    lines.append(places_table(evidence).markdown())
    lines += ["", "TAP minus a control on the same full steps and the same images, dB:", ""]
    lines.append(differences_table(evidence.quality).markdown())
    lines += ["", "By other measures, at N = 8:", "", distances_table(evidence).markdown()]
    if "psnr_fine" in evidence.quality and (finer := evidence.quality["psnr_fine"].sel(cell="tap N=8").notnull()).any():
        same = evidence.quality.isel(sample=finer.values)
        lines += ["", f"TAP minus a control on the {same.sizes['sample']} images that have a finer reference, by the "
                  "usual one, dB:", "", differences_table(same).markdown(), "", "and by the finer one:", "",
                  differences_table(same.assign(psnr=same["psnr_fine"])).markdown()]  # fmt: skip
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


def _beside(findings: Sequence[Finding], others: Mapping[str, Sequence[Finding]]) -> Table:
    """Return the verdicts of several studies, each with its own deciding value."""
    rows = []
    for finding in findings:
        same = [next((one for one in found if one.claim.name == finding.claim.name), None) for found in others.values()]
        cells = [f"**{one.verdict}**: {one.decisive.name} {_value(one.decisive)}" if one else "" for one in same]
        rows.append([finding.claim.name, f"**{finding.verdict}**", *cells])
    return Table(["", "here", *others], rows)


def _passes(evidence: Evidence) -> float:
    return float(evidence.quality["full_passes"].sel(cell="tap N=8").mean())


def places_table(evidence: Evidence) -> Table:
    """Return PSNR of the main runs on every placement of equally many full steps."""
    names = evidence.quality["cell"].values.tolist()
    rows = []
    for key, text in AT_PLACES.items():
        cells = [key.format(on) if "{}" in key else f"{key} {on}" for on in PLACES]
        if not {*cells} & {*names}:
            continue
        rows.append([text, *(_psnr(evidence, cell) if cell in names else "" for cell in cells)])
    return Table(["", *PLACES.values()], rows)


def differences_table(quality: xr.Dataset) -> Table:
    """Return PSNR of TAP minus that of every control, paired by image, at every interval and placement."""
    names = quality["cell"].values[quality["psnr"].notnull().sum("sample").values > 1].tolist()
    at = [one for one in placements(quality) if f"tap {one}" in names]
    rows = []
    for key, text in CONTROLS.items():
        there = {one: (f"tap {one}", f"{key} {one}") for one in at if f"{key} {one}" in names and key != "tap"}
        if there:
            found = gains(quality, there)["gain"]
            cells = {one: interval_text(found.sel(run=one).values, "+.2f") for one in there}
            rows.append([text, *(cells.get(one, "") for one in at)])
    return Table(["TAP minus", *(one.replace("=", " = ") for one in at)], rows)


def distances_table(evidence: Evidence) -> Table:
    """Return means over images of everything that images are compared by, for every method at N = 8."""
    names = evidence.quality["cell"].values.tolist()
    there = [name for name in DISTANCES if name in evidence.quality and evidence.quality[name].notnull().any()]
    found = {name: DISTANCES[name] for name in there}
    runs = {f"{key} N=8": text for key, text in CONTROLS.items()}
    runs |= {"tap N=8 smooth": "TAP, low-pass", "tap best": "TAP, best mask", "tap best smooth": "TAP, both"}
    rows = []
    for run, text in runs.items():
        if run in names:
            one = evidence.quality.sel(cell=run)
            rows.append([text, *(_mean(one[name].values, digits) for name, (_, digits) in found.items())])
    return Table(["", *(text for text, _ in found.values())], rows)


def _mean(values: Any, digits: int) -> str:
    there = values[np.isfinite(values)]
    return f"{there.mean():.{digits}f} ({len(there)})" if len(there) else ""


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
    return interval_text(mean_interval(found), ".1f")


def _bound(part: Part) -> str:
    return f"{'>' if part.above else '<'} {part.threshold:g}{' ' + part.unit if part.unit else ''}"


def _value(part: Part) -> str:
    return interval_text(part.interval, ".2f" if part.unit else ".3f") + (f" {part.unit}" if part.unit else "")


def _p(value: float) -> str:
    return f"{value:.2g}" if value >= 0.001 else "< 0.001"


def verdict_table(findings: Sequence[Any]) -> xr.Dataset:
    """Return every claim by the inequality that decides it.

    Args:
        findings: from `judge`: `claim`, `verdict`, `adjusted` and `decisive`, a part with `name`, `interval`,
            `threshold`, `above` and `unit`.

    Returns:
        Over `claim`: `value` (claim, bound), the mean over images with its 95 % interval; `threshold`, `verdict`,
        `statement`, `decided_by`, `unit`, `p_value`; and `margin` (claim, bound): how far value and bounds lie on
        the claimed side of the threshold, in the unit.
    """
    values = np.array([finding.decisive.interval for finding in findings], dtype=np.float64)  # (claim, bound)
    threshold = np.array([finding.decisive.threshold for finding in findings], dtype=np.float64)
    side = np.where([finding.decisive.above for finding in findings], 1.0, -1.0)
    margin = side[:, None] * (values - threshold[:, None])
    below = side < 0
    margin[below] = margin[below][:, [0, 2, 1]]  # what was low is high on the other side
    texts = {
        "verdict": [str(finding.verdict) for finding in findings],
        "statement": [finding.claim.statement for finding in findings],
        "decided_by": [finding.decisive.name for finding in findings],
        "unit": [finding.decisive.unit for finding in findings],
    }
    return xr.Dataset(
        {
            "value": (("claim", "bound"), values),
            "margin": (("claim", "bound"), margin, {"long_name": "beyond the threshold, on the claimed side"}),
            "threshold": ("claim", threshold),
            "p_value": ("claim", [finding.adjusted for finding in findings], {"long_name": "p-value (Holm)"}),
            **{name: ("claim", np.array(rows, dtype=object)) for name, rows in texts.items()},
        },
        coords={"claim": [finding.claim.name for finding in findings], "bound": list(BOUNDS)},
    )


def verdicts_by_study(studies: Mapping[str, Sequence[Finding]]) -> xr.DataArray:
    """Return the verdicts of several studies, (claim, study), "" where one has none, with `statement` on claim."""
    claims = {finding.claim.name: finding.claim.statement for found in studies.values() for finding in found}
    verdicts = [{finding.claim.name: str(finding.verdict) for finding in found} for found in studies.values()]
    return xr.DataArray(
        np.array([[one.get(claim, "") for one in verdicts] for claim in claims], dtype=object),
        dims=("claim", "study"),
        coords={"claim": list(claims), "study": list(studies), "statement": ("claim", list(claims.values()))},
        name="verdict",
    )
