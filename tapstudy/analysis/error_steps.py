"""How errors build up along the solver: one value per policy, image and step."""

from __future__ import annotations

import xarray as xr

from tapstudy.analysis.require import require

NORMS = ("local_error", "contribution", "path_length", "net_error", "net_propagated", "deviation")


def per_step(errors: xr.Dataset) -> xr.Dataset:
    """Root mean squares over tokens, (policy, sample, step), small enough to keep.

    Args:
        errors: from `error_propagation`.

    Returns:
        `local_error`, `contribution`, `path_length`, `net_error`, `net_propagated` and `deviation`; of these, as in
        `per_image`, `coherence` (net error over path length) and `amplification` (deviation over net error), NaN before
        the first skip step; `feedback_cosine`, the cosine over tokens and channels between the summed contributions
        and what the model made of the deviations so far: negative where the model corrects; `is_full`.
    """
    dims = ("policy", "step", "token")
    require(errors, "per_step", feedback=dims, is_full=("policy", "step"), **dict.fromkeys(NORMS, dims))
    found = {name: ((errors[name] ** 2).mean("token") ** 0.5).assign_attrs(errors[name].attrs) for name in NORMS}
    begun = (errors["is_full"] == 0).cumsum("step") > 0
    cosine = _ratio(errors["feedback"].mean("token"), found["net_error"] * found["net_propagated"])
    found |= {
        "coherence": _ratio(found["net_error"], found["path_length"]).where(begun).assign_attrs(
            long_name="net error over path length", units="1"
        ),
        "amplification": _ratio(found["deviation"], found["net_error"]).where(begun).assign_attrs(
            long_name="deviation over net error", units="1"
        ),
        "feedback_cosine": cosine.where(begun).assign_attrs(
            long_name="cosine of contributions and feedback", units="1"
        ),
    }  # fmt: skip
    return xr.Dataset({**found, "is_full": errors["is_full"]}).transpose("policy", ..., "step")


def _ratio(above: xr.DataArray, below: xr.DataArray) -> xr.DataArray:
    return above / below.where(below > 0)
