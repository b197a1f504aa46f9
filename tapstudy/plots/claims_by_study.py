"""The verdicts of several studies side by side: what holds on one model only, and what everywhere."""

from __future__ import annotations

import textwrap
from collections import Counter

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from tapstudy.plots.claims import VERDICTS
from tapstudy.plots.style import style, subplots

WIDTH = 76


@style()
def plot_claims_by_study(verdicts: xr.DataArray) -> Figure:
    """Draw a row per claim and a column per study, a mark for each verdict.

    Args:
        verdicts: verdict as text (claim, study), "" where a study has none, with `statement` on claim. The title of a
            study is broken at its commas.
    """
    claims, studies = verdicts["claim"].values, verdicts["study"].values.tolist()
    figure, ((axis,),) = subplots(
        1, 1, figsize=(4.9 + 0.95 * len(studies), 1.5 + 0.24 * len(claims)), squeeze=False, constrained_layout=True
    )
    for verdict, (colour, marker) in VERDICTS.items():
        rows, columns = np.nonzero(verdicts.transpose("claim", "study").values == verdict)
        axis.plot(columns, rows, color=colour, marker=marker, markersize=6, linestyle="none", label=verdict)
    statements = verdicts["statement"].values
    labels = [
        f"{name}  {textwrap.fill(text, WIDTH, max_lines=2, placeholder=' ...')}"
        for name, text in zip(claims, statements, strict=True)
    ]
    axis.set_yticks(np.arange(len(claims)), labels, fontsize=6.5)
    axis.set_ylim(len(claims) - 0.4, -0.6)
    axis.set_xticks(np.arange(len(studies)), [_heading(verdicts.sel(study=one)) for one in studies], fontsize=6.5)
    axis.set_xlim(-0.6, len(studies) - 0.4)
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.grid(axis="y", color="0.93")
    figure.legend(frameon=False, ncols=3, fontsize=8, loc="outside lower right")
    return figure


def _heading(verdicts: xr.DataArray) -> str:
    """Return a study's title, and how many claims hold, fail and are undecided."""
    counts = Counter(verdicts.values.tolist())
    told = " · ".join(str(counts[verdict]) for verdict in VERDICTS)
    return "\n".join([*str(verdicts["study"].item()).split(", "), told])
