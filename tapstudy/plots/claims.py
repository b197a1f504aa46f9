"""The verdicts on all claims at a glance."""

from __future__ import annotations

import textwrap

import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.style import BLUE, VERMILION, bar_lengths, style, subplots

VERDICTS = {"holds": (BLUE, "o"), "fails": (VERMILION, "X"), "undecided": ("0.5", "D")}
WIDTH = 84


@style()
def plot_claims(verdicts: xr.Dataset) -> Figure:
    """One row per claim: the inequality that decides it, with its 95 % interval, over the width of that interval.

    The inequalities have different units, so each is drawn as its distance from its threshold, on the claimed side to
    the right, in units of half the width of its interval: an interval that does not touch 0 decides.

    Args:
        verdicts: from `verdict_table`: `distance` (claim, bound), `verdict`, `statement`, `decided_by` (claim).
    """
    count = verdicts.sizes["claim"]
    figure, axis = subplots(figsize=(9.4, 0.6 + 0.3 * count), constrained_layout=True)
    for y, claim in enumerate(verdicts["claim"].values):
        row = verdicts.sel(claim=claim)
        colour, marker = VERDICTS[str(row["verdict"].item())]
        mean = row["distance"].sel(bound="mean").item()
        bars = [[length] for length in bar_lengths(row["distance"])]
        axis.errorbar(mean, y, xerr=bars, color=colour, marker=marker, markersize=5, capsize=2)
    texts = [
        f"{claim}  {_two_lines(str(text))}"
        for claim, text in zip(verdicts["claim"].values, verdicts["statement"].values, strict=True)
    ]
    axis.set_yticks(range(count), texts, fontsize=6.5)
    axis.set_ylim(count - 0.4, -0.6)
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.set_xscale("symlog", linthresh=2)
    axis.set_xlabel("distance from the threshold, claimed side to the right (half widths of the 95 % interval)")
    for verdict, (colour, marker) in VERDICTS.items():
        axis.plot([], [], color=colour, marker=marker, linestyle="none", label=verdict)
    axis.legend(frameon=False, ncols=3, fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))
    return figure


def _two_lines(text: str) -> str:
    return "\n".join(textwrap.wrap(text, WIDTH, max_lines=2, placeholder=" ..."))
