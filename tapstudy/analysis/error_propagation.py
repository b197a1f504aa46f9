"""Why the trajectory with the smaller errors may end farther away: what the solver makes of local errors.

Euler steps x_(i+1) = x_i + d_i v_i with d_i = sigma_(i+1) - sigma_i. Along an accelerated trajectory x^ the sampler
uses v^_i instead of the model's v(x^_i). With the local error e_i = v^_i - v(x^_i), made at the state that was reached,
the deviation D_i = x^_i - x_i from the exact trajectory obeys, exactly,

    D_(i+1) = D_i  +  d_i e_i  +  d_i (v(x^_i) - v(x_i)),

the step's own contribution and what the model makes of the deviation that was there (Hairer, Norsett, Wanner, "Solving
Ordinary Differential Equations I", II.3: local errors and their transport). Three things therefore decide the end:

    |D_T|  =  sum |d e|   x   |sum d e| / sum |d e|   x   |D_T| / |sum d e|
              path length     coherence                   amplification

The last factor is no pure growth: with the sums S of the contributions and R of what the model made of the deviations,
D_T = S + R, so |D_T|^2 = |S|^2 + |R|^2 + 2 S.R, and a model that pulls back (S.R < 0) makes it smaller than 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import xarray as xr

from tapstudy.analysis.choice_maps import of_the_choice
from tapstudy.analysis.require import require
from tapstudy.analysis.result import described

REFERENCE = "reference"
CHANNEL = "latent_channel"
ENDS = ("path_length", "net_error", "net_propagated", "deviation")
NORMS = ("local_error", "contribution", *ENDS)
QUOTIENTS = ("coherence", "amplification", "feedback_cosine")

Member = tuple[int, float] | Literal["choice", "oracle"]


def error_propagation(runs: xr.Dataset) -> xr.Dataset:
    """Local errors, their transport and their sum for every policy, per token and step; lazy if `runs` is.

    Norms are over the values of a token's patch. "So far" means up to and including the step.

    Args:
        runs: what `bench.claims.solver_runs` returns: `state` (policy, sample, node, token, latent_channel),
            `velocity_used` and `velocity_exact` (policy, sample, step, token, latent_channel), `is_full` (policy,
            sample, step), coordinate `node_sigma` (node); one policy is "reference".

    Returns:
        Per (policy, sample, step, token), the reference left out:

        - `local_error` |e|, `relative_local_error` |e| / |v(x^)|, `along_velocity` e.v / |v|^2 (positive: too fast);
        - `contribution` |d e|, `propagated` |d (v(x^) - v(x))|, `deviation` |D| after the step;
        - `path_length` sum |d e| so far, `net_error` |sum d e| so far, `coherence`, their quotient in [0, 1];
        - `net_propagated`, norm of the sum of the propagated parts so far, and `feedback`, the inner product of that
          sum and the sum of the contributions: deviation^2 = net_error^2 + net_propagated^2 + 2 feedback;
        - `amplification` deviation / net error; `identity_gap`, by how much the identity above is missed (rounding);
        - `successive_cosine` between d e of this step and of the one before, NaN unless both are skip steps;

        Per (policy, sample, step): `bias`, norm of the mean of d e over tokens over the mean of |d e|, in [0, 1];
        `is_full`. Quotients are NaN before the first skip step, where errors are rounding.

    Raises:
        ValueError: a missing variable, dimension or reference.
    """
    per_step = ("policy", "step", "token", CHANNEL)
    require(
        runs, "error_propagation", state=("policy", "node", "token", CHANNEL), velocity_used=per_step,
        velocity_exact=per_step, is_full=("policy", "step"), node_sigma=("node",),
    )  # fmt: skip
    names = [str(name) for name in runs["policy"].values]
    if REFERENCE not in names or len(names) < 2:
        raise ValueError(f"error_propagation needs the policy {REFERENCE!r} and at least one other, got {names}")
    if runs.sizes["node"] != runs.sizes["step"] + 1:
        raise ValueError(
            f"error_propagation needs one node more than steps, got {runs.sizes['node']} and {runs.sizes['step']}"
        )
    exact = runs.sel(policy=REFERENCE, drop=True)
    other = runs.sel(policy=[name for name in names if name != REFERENCE])
    gap = xr.DataArray(np.diff(runs["node_sigma"].values), dims="step").astype(runs["state"].dtype)  # (step,): d

    error = other["velocity_used"] - other["velocity_exact"]
    push = gap * error
    carried = gap * (other["velocity_exact"] - exact["velocity_exact"])
    deviation = (other["state"] - exact["state"]).drop_vars("node_sigma")
    before, after = (
        deviation.isel(node=part)
        .rename(node="step")
        .drop_vars("step", errors="ignore")
        .assign_coords(step=push["step"])
        for part in (slice(None, -1), slice(1, None))
    )
    speed = _norm(other["velocity_exact"])
    skipped = other["is_full"] == 0
    begun = skipped.cumsum("step") > 0
    pushed, pulled = push.cumsum("step"), carried.cumsum("step")
    path, net = _norm(push).cumsum("step"), _norm(pushed)
    moved = _norm(after)
    last = push.shift(step=1)
    both = skipped & skipped.shift(step=1, fill_value=False)
    found = {
        "local_error": (_norm(error), "norm of the local velocity error"),
        "relative_local_error": (_ratio(_norm(error), speed), "local error over the norm of the exact velocity"),
        "along_velocity": (
            _ratio((error * other["velocity_exact"]).sum(CHANNEL), speed**2),
            "local error along the exact velocity, over its norm",
        ),
        "contribution": (_norm(push), "norm of the step's own contribution to the deviation"),
        "propagated": (_norm(carried), "norm of what the model makes of the deviation in this step"),
        "deviation": (moved, "distance from the exact trajectory after the step"),
        "path_length": (path, "sum of the norms of the contributions so far"),
        "net_error": (net, "norm of the sum of the contributions so far"),
        "net_propagated": (_norm(pulled), "norm of the sum of the propagated parts so far"),
        "feedback": ((pushed * pulled).sum(CHANNEL), "inner product of the summed contributions and propagated parts"),
        "coherence": (_ratio(net, path).where(begun), "net error over path length"),
        "amplification": (_ratio(moved, net).where(begun), "deviation over net error"),
        "successive_cosine": (
            _ratio((push * last).sum(CHANNEL), _norm(push) * _norm(last)).where(both),
            "cosine between successive contributions",
        ),
        "identity_gap": (_norm(after - before - push - carried), "deviation not explained by the two parts"),
        "bias": (
            _ratio(_norm(push.mean("token")), _norm(push).mean("token")).where(skipped),
            "norm of the mean contribution over the mean norm, over tokens",
        ),
        "is_full": (other["is_full"], "the model ran in full (1) or was skipped (0)"),
    }
    table = described({name: (values, text, "1") for name, (values, text) in found.items()})
    return table.transpose("policy", ..., "step", "token")


def per_image(errors: xr.Dataset) -> xr.Dataset:
    """One row per policy and image, (policy, sample), ready for `with_interval` over images.

    `path_length`, `net_error` and `deviation` are the values at the last step, as root mean squares over tokens, so
    that `deviation` is what PSNR measures (before clipping). `coherence` and `amplification` are quotients of these,
    hence deviation = path_length * coherence * amplification for every image. So is `net_propagated`, and
    `feedback_cosine` is the cosine, over all tokens and channels, between the sum of the contributions and what the
    model made of the deviations: negative where the model corrects. The rest are means over tokens and skip steps.

    Args:
        errors: from `error_propagation`.
    """
    end = per_step(errors).isel(step=-1, drop=True)
    found = {name: (end[name], end[name].attrs["long_name"], "1") for name in (*ENDS, *QUOTIENTS)}
    skipped = errors["is_full"] == 0
    for name in ("relative_local_error", "along_velocity", "successive_cosine", "bias"):
        values = errors[name].where(skipped)
        mean = values.mean([dim for dim in ("step", "token") if dim in values.dims])
        found[name] = (mean, errors[name].attrs["long_name"], "1")
    return described(found)


def against(table: xr.Dataset, baseline: str) -> xr.Dataset:
    """Log ratios of every policy to `baseline`, image by image: those of the three factors add up to the deviation's.

    Args:
        table: from `per_image`.
        baseline: a policy of it.
    """
    require(table, "against", deviation=("policy",), path_length=("policy",))
    if baseline not in table["policy"].values:
        raise ValueError(f"against: no policy {baseline!r}: there are {table['policy'].values.tolist()}")
    parts = table[["deviation", "path_length", "coherence", "amplification"]]
    logs = parts.map(np.log)
    found = (logs - logs.sel(policy=baseline, drop=True)).drop_sel(policy=baseline)
    for name in found.data_vars:
        found[name].attrs = {"long_name": f"log ratio to {baseline}: {parts[name].attrs['long_name']}", "units": "1"}
    return found


def teacher_forced_error(recording: xr.Dataset, members: Mapping[str, Member]) -> xr.DataArray:
    """Relative residual error along the exact trajectory, (policy, sample, context, step, token); NaN at full steps.

    Args:
        recording: teacher-forced, with `true_error` (..., step, token, predictor), the coordinates `order` and `shift`,
            and `choice` (..., step, token) if a member asks for it.
        members: policy name -> a fixed predictor as (order, shift), "choice" (what was chosen by the probe) or
            "oracle" (the least of all members).

    Raises:
        ValueError: a missing variable, or a predictor that is not in the recorded family.
    """
    dims = ("step", "token", "predictor")
    require(recording, "teacher_forced_error", true_error=dims, order=("predictor",), shift=("predictor",))
    errors = recording["true_error"]
    labels = list(zip(recording["order"].values.tolist(), recording["shift"].values.tolist(), strict=True))
    found = []
    for member in members.values():
        if member == "oracle":
            found.append(errors.min("predictor", skipna=False))
        elif member == "choice":
            require(recording, "teacher_forced_error", choice=("step", "token"))
            found.append(of_the_choice(errors, recording["choice"]))
        elif member in labels:
            found.append(
                errors.isel(predictor=labels.index(member), drop=True).drop_vars(["order", "shift"], errors="ignore")
            )
        else:
            raise ValueError(f"teacher_forced_error: no predictor {member!r} in the recorded family {labels}")
    joined = xr.concat(found, dim="policy", coords="minimal", compat="override").assign_coords(policy=list(members))
    return joined.rename("teacher_forced_error").assign_attrs(
        long_name="relative residual error along the exact trajectory", units="1"
    )


def _norm(vectors: xr.DataArray) -> xr.DataArray:
    """Over the values of a patch."""
    return _root((vectors**2).sum(CHANNEL))


def _root(values: xr.DataArray) -> xr.DataArray:
    return values**0.5


def _ratio(above: xr.DataArray, below: xr.DataArray) -> xr.DataArray:
    return above / below.where(below > 0)


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
