"""Verdicts on claims as a dataset that can be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

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
