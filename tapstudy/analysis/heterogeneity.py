"""How the trajectories of tokens differ: speed, bending, the order they follow, and who owns the variance."""

from __future__ import annotations

from math import factorial

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.signal import detrend, get_window
from scipy.stats import rankdata

from tapstudy.analysis.choice_maps import of_the_choice
from tapstudy.analysis.require import require
from tapstudy.analysis.result import described, lazily, means, shares

Array = NDArray[np.floating]
HIGHEST_ORDER = 3
TOLERANCE = 0.1  # how much worse than the best a lower order may be
CUT = 0.125  # cycles per step, of which there are at most 0.5

_PER_STEP = {  # name: (long_name, units)
    "velocity": ("speed of the token's feature", "feature / step"),
    "relative_velocity": ("speed over the norm of the feature", "1 / step"),
    "acceleration": ("norm of the second derivative of the feature", "feature / step2"),
    "curvature": ("curvature of the token's path", "1 / feature"),
    "turning_angle": ("angle between successive increments", "degree"),
    "effective_order": ("lowest order that extrapolates about as well as any", "1"),
}


def token_dynamics(recording: xr.Dataset, *, variable: str = "residual") -> xr.Dataset:
    """Return the local shape of every token's trajectory F_i (a vector over channels), lazily.

    With divided differences F[..] on the steps, at step i and from steps up to i alone:

    - velocity |F[i, i-1]|, and the same over |F_i|; acceleration 2 |F[i, i-1, i-2]|;
    - curvature |a_perp| / |v|^2 (Frenet; arc-length curvature in any dimension), with v and a the derivatives, at the
      middle one, of the parabola through steps i-2, i-1, i;
    - turning angle between F_i - F_(i-1) and F_(i-1) - F_(i-2), in degrees: 180 where the token goes back;
    - effective order: the polynomial of degree m through the m + 1 steps before i misses F_i by e_m. The lowest m of
      0..3 with e_m <= 1.1 min(e) + 4 eps |F_i|; the last term is what rounding to the stored dtype
      contributes to a fourth difference (sqrt(70) eps / 2), so that rounding decides nothing.

    Over all steps of a token, `high_frequency_share`: share of the temporal energy above `CUT`, summed over channels,
    after taking out a straight line per channel and under a Hann window.

    Args:
        recording: with `variable` (..., step, ..., token, channel), or `latent_channel` for "latent_residual".
        variable: "residual", "probe" or "latent_residual".

    Returns:
        Variables of the dimensions of `variable` without channels; NaN at the first steps (1 for the velocity, 2 for
        second derivatives, 4 for the order) and where a quotient is 0 / 0.

    Raises:
        ValueError: a missing variable, fewer than five steps, or steps left out between others.
    """
    channel = "latent_channel" if variable == "latent_residual" else "channel"
    require(recording, "token_dynamics", **{variable: ("step", "token", channel)})
    if recording.sizes["step"] < HIGHEST_ORDER + 2:
        raise ValueError(
            f"token_dynamics needs at least {HIGHEST_ORDER + 2} steps (order {HIGHEST_ORDER} is extrapolated from "
            f"{HIGHEST_ORDER + 1}), got {recording.sizes['step']}"
        )
    if "step" in recording.coords and (np.diff(recording["step"].values) != 1).any():
        raise ValueError(
            f"token_dynamics needs steps one after the other, got {recording['step'].values.tolist()}: leave none out"
        )
    features = recording[variable].chunk({"step": -1, channel: -1})
    found = lazily(
        _dynamics, features, core=(f"step {channel}",), out=(*["step"] * len(_PER_STEP), ""),
        dtypes=[np.float32] * (len(_PER_STEP) + 1),
    )  # fmt: skip
    order = [dim for dim in features.dims if dim != channel]
    units = {**_PER_STEP, "high_frequency_share": (f"share of temporal energy above {CUT} cycles per step", "1")}
    return described({
        name: (values.transpose(*[dim for dim in order if dim in values.dims]), *about)
        for values, (name, about) in zip(found, units.items(), strict=True)
    })  # fmt: skip


def dynamics_summary(found: xr.Dataset) -> xr.Dataset:
    """Summarise `token_dynamics`: means of what is measured, and how often each effective order comes."""
    orders = {order: f"order {order}" for order in range(HIGHEST_ORDER + 1)}
    measured = [str(name) for name in found.data_vars if name != "effective_order"]
    effective = shares(
        found["effective_order"], orders, dim="order", long_name="share of the tokens' steps by effective order"
    )
    return means(found, *measured).assign(effective_order_share=effective)


def _dynamics(features: Array) -> tuple[Array, ...]:
    """Turn features (..., step, channel) into the variables (..., step) of `_PER_STEP`, and the share (...)."""
    epsilon = float(np.finfo(features.dtype).eps)
    wide = features.astype(np.promote_types(features.dtype, np.float32), copy=False)
    levels = [wide]  # divided differences F[i, .., i-m], NaN for the first m steps
    for m in range(1, HIGHEST_ORDER + 2):
        level = np.full_like(wide, np.nan)
        level[..., m:, :] = (levels[-1][..., m:, :] - levels[-1][..., m - 1 : -1, :]) / m
        levels.append(level)
    first, second = levels[1], levels[2]
    before = np.full_like(first, np.nan)
    before[..., 1:, :] = first[..., :-1, :]  # the increment before this one
    size = _norm(wide)
    velocity, acceleration = _norm(first), 2 * _norm(second)

    tangent = before + second  # derivative of the parabola at its middle step
    speed = _norm(tangent)
    along = _ratio(2 * (second * tangent).sum(axis=-1), speed)
    across = _norm(2 * second - along[..., None] * _ratio(tangent, speed[..., None]))
    curvature = _ratio(across, speed**2)
    # from the half-angle: exact for small angles, where an arc cosine is not
    a, b = _ratio(first, velocity[..., None]), _ratio(before, _norm(before)[..., None])
    angle = np.degrees(2 * np.arctan2(_norm(a - b), _norm(a + b)))

    # times the product of the distances from a step to those before it
    errors = [_norm(levels[m + 1]) * float(factorial(m + 1)) for m in range(HIGHEST_ORDER + 1)]  # (..., step) each
    misses = np.stack(errors)
    enough = misses <= (1 + TOLERANCE) * misses.min(axis=0) + 4 * epsilon * size
    effective = np.where(np.isnan(misses[-1]), np.nan, enough.argmax(axis=0))
    results = (velocity, _ratio(velocity, size), acceleration, curvature, angle, effective)
    return *(values.astype(np.float32) for values in results), _high_share(wide, epsilon).astype(np.float32)


def _high_share(features: Array, epsilon: float) -> Array:
    """Turn (..., step, channel) into (...); NaN for a straight line, whose remainder is rounding."""
    steps = features.shape[-2]
    window = get_window("hann", steps, fftbins=False).astype(features.dtype)[:, None]
    bent = detrend(features, axis=-2) * window
    energy = (np.abs(np.fft.rfft(bent, axis=-2)) ** 2).sum(axis=-1)  # (..., frequency)
    rounding = (epsilon + 8 * np.sqrt(steps) * np.finfo(features.dtype).eps) * _norm(features).max(axis=-1)
    total = np.where(_norm(bent).max(axis=-1) > rounding, energy.sum(axis=-1), np.nan)
    return _ratio(energy[..., np.fft.rfftfreq(steps) > CUT].sum(axis=-1), total)


def _norm(vectors: Array) -> Array:
    return np.sqrt((vectors * vectors).sum(axis=-1))


def _ratio(above: Array, below: Array) -> Array:
    return above / np.where(below > 0, below, np.nan)


def chosen_order(recording: xr.Dataset) -> xr.DataArray:
    """Order m of the predictor every token chose, (..., step, token); NaN at full steps.

    Args:
        recording: with `choice` (..., step, token) and the coordinate `order` (predictor).
    """
    require(recording, "chosen_order", choice=("step", "token"), order=("predictor",))
    order = of_the_choice(recording["order"].astype(np.float32), recording["choice"]).reset_coords(drop=True)
    return order.assign_coords(recording["choice"].coords).assign_attrs(
        long_name="order of the chosen predictor", units="1"
    )


def relation(dynamics: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """Return the Spearman correlation of two quantities across the tokens of every image and step.

    For "do fast tokens choose a higher order": `relation(token_dynamics(r)["velocity"], chosen_order(r))`, then the
    mean over contexts and steps and `with_interval` over images.

    Args:
        dynamics, other: (..., token); other dimensions are matched by name, ties get their mean rank, tokens where
            either is NaN are left out.

    Returns:
        (...), lazily; NaN with fewer than three tokens, or where one of the two is the same for all tokens.
    """
    for name, values in (("dynamics", dynamics), ("other", other)):
        if "token" not in values.dims:
            raise ValueError(f"relation: {name} has no dimension 'token': it has {tuple(map(str, values.dims))}")
    names = [str(values.attrs.get("long_name", values.name)) for values in (dynamics, other)]
    both = dynamics.chunk({"token": -1}), other.chunk({"token": -1})
    return lazily(_spearman, *both, core=("token", "token"), join="exact").assign_attrs(
        long_name=f"rank correlation across tokens: {names[0]}, {names[1]}", units="1"
    )


def _spearman(a: Array, b: Array) -> Array:
    """Correlate ranks over the last axis."""
    a, b = np.broadcast_arrays(a, b)
    kept = np.isfinite(a) & np.isfinite(b)
    count = kept.sum(axis=-1, keepdims=True)
    centred = []
    for values in (a, b):
        # what is left out sorts behind the rest and so does not move their ranks
        ranks = np.where(kept, rankdata(np.where(kept, values, np.inf), axis=-1), 0.0)
        centred.append(np.where(kept, ranks - ranks.sum(axis=-1, keepdims=True) / np.maximum(count, 1), 0.0))
    u, v = centred
    norm = np.sqrt((u * u).sum(axis=-1) * (v * v).sum(axis=-1))
    return np.where(count[..., 0] >= 3, _ratio((u * v).sum(axis=-1), norm), np.nan)
