"""Which predictor every token takes: maps over the image, and what they look like in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import entr

from tapstudy.analysis.require import require
from tapstudy.analysis.result import Described, described, lazily, means, shares


def choice_maps(scores: xr.Dataset) -> xr.Dataset:
    """Return the choices as maps.

    Of identical predictors `choice` names the first, so order 1 at horizon 0 counts as order 0.

    Args:
        scores: with `choice` (..., step, token), -1 at full steps, and coordinates `row`, `col` (and `frame`) on
            token, `order`, `shift` on predictor.

    Returns:
        Lazy if `scores` is, each with the dimensions of `choice`, but (frame,) row, col instead of token:
        `choice`, int16; `chosen_order`, int16, both -1 at full steps; `chosen_shift`, float, NaN at full steps and
        where order 0 is chosen, which ignores the horizon.

    Raises:
        ValueError: variables or coordinates are missing, or two tokens lie at one place.
    """
    choice = _choice(scores, "choice_maps")
    grid = _unstack(choice, scores)
    orders, shifts = (np.asarray(scores[name].values) for name in ("order", "shift"))
    # index -1, a full step, finds the last
    of_order = np.append(orders, -1).astype(np.int16)
    of_shift = np.append(np.where(orders == 0, np.nan, shifts), np.nan)
    order = lazily(lambda choice: of_order[choice], grid, core=("",), dtypes=(np.int16,))
    shift = lazily(lambda choice: of_shift[choice], grid, core=("",))
    maps = described({
        "choice": (grid, "chosen predictor (-1 at full steps)", "1"),
        "chosen_order": (order, "order of the chosen predictor (-1 at full steps)", "1"),
        "chosen_shift": (shift, "shift of the chosen predictor's horizon", "step"),
    })  # fmt: skip
    return maps.assign_coords({name: scores[name] for name in ("order", "shift", "distance") if name in scores})


def maps_summary(maps: xr.Dataset) -> xr.Dataset:
    """Summarise `choice_maps`: how often each order and shift is chosen."""
    orders, steps = (np.unique(maps[name].values).tolist() for name in ("order", "shift"))
    return xr.Dataset({
        "order_share": shares(
            maps["chosen_order"], {order: f"order {order}" for order in orders}, dim="chosen",
            long_name="share of the tokens at skip steps",
        ),
        "shift_share": shares(
            maps["chosen_shift"], {shift: f"shift {shift:g}" for shift in steps}, dim="chosen_shift",
            long_name="share of the tokens of order above 0",
        ),
    })  # fmt: skip


def statistics_summary(found: xr.Dataset) -> xr.Dataset:
    """Summarise `choice_statistics`: shares by order and by shift, and what is measured at every skip step.

    Not the shares of single predictors, which are 1 / predictors on average whatever is chosen, nor the expectations
    of Moran's I, which follow from the number of tokens.
    """
    names = ("entropy", "moran_order", "moran_shift", "switch_within", "switch_across")
    order_share = means(found, "order_share", along="chosen_order")
    shift_share = means(found, "shift_share", along="chosen_shift")
    return order_share.assign(shift_share.data_vars).assign(means(found, *names).data_vars)


def of_the_choice(values: xr.DataArray, choice: xr.DataArray) -> xr.DataArray:
    """Take the value (..., predictor) or (predictor) of the chosen predictor, (...); NaN without a choice (-1)."""

    def pick(values: NDArray[np.floating], index: NDArray[np.integer]) -> NDArray[np.floating]:
        values = np.broadcast_to(values, (*index.shape, values.shape[-1]))
        picked = np.take_along_axis(values, np.maximum(index, 0)[..., None].astype(np.intp), axis=-1)[..., 0]
        return np.where(index >= 0, picked, np.nan).astype(values.dtype)

    return lazily(pick, values, choice, core=("predictor", ""), dtypes=(values.dtype,))


def choice_statistics(scores: xr.Dataset) -> xr.Dataset:
    """Return the choices of a step in numbers.

    Args:
        scores: as in `choice_maps`, and with `distance` (..., step).

    Returns:
        Lazy if `scores` is, over the leading dimensions and step, NaN at full steps:

        - `share` (..., predictor), `order_share` (..., chosen_order), `shift_share` (..., chosen_shift): share of the
          tokens that choose it; the last among the tokens that choose an order above 0 (NaN if there are none).
        - `entropy`: of `share` over the tokens, in bits.
        - `moran_order`, `moran_shift` (..., frame if there is one): Moran's I of the maps, within a frame; that of
          the shift over the tokens that have one. Two tokens are neighbours if they share an edge, and every pair
          weighs the same (binary weights). NaN where all tokens agree. `moran_order_expected`,
          `moran_shift_expected`: -1 / (tokens - 1), its mean when the map's tokens are permuted.
        - `switch_within`: share of the tokens whose choice (order and shift) differs from that at the skip step
          before, within a window between anchors. `switch_across`: the same where anchors lie between the two.
          Each is NaN at the steps of the other.

    Sources: Moran, 1950; Cliff and Ord, 1981.
    """
    choice = _choice(scores, "choice_statistics")
    require(scores, "choice_statistics", distance=("step",))
    orders, shifts = (np.asarray(scores[name].values) for name in ("order", "shift"))
    statistics = _shares(choice, orders, shifts)
    maps = choice_maps(scores)
    for name in ("order", "shift"):
        values = maps[f"chosen_{name}"]
        values = values.where(values >= 0) if name == "order" else values
        index, expected = lazily(morans_i, values, core=("row col",), out=("", ""), dtypes=(np.float64,) * 2)
        text = f"Moran's I of the chosen {name}"
        statistics[f"moran_{name}"] = (index, text, "1")
        statistics[f"moran_{name}_expected"] = (expected, f"{text} expected under permutation", "1")
    anchor = scores["step"] - scores["distance"]
    within, across = lazily(
        switching, choice, anchor, core=("step token", "step"), out=("step", "step"), dtypes=(np.float64,) * 2
    )
    statistics["switch_within"] = (within, "share of tokens that switch predictor within a window", "1")
    statistics["switch_across"] = (across, "share of tokens that switch predictor across anchors", "1")
    coords: dict[str, Any] = {name: scores[name] for name in ("order", "shift", "distance")}
    coords |= {"chosen_order": np.unique(orders), "chosen_shift": np.unique(shifts)}
    return described(statistics).assign_coords(coords)


def _choice(scores: xr.Dataset, analysis: str) -> xr.DataArray:
    token, predictor = ("token",), ("predictor",)
    require(scores, analysis, choice=("step", "token"), row=token, col=token, order=predictor, shift=predictor)
    return scores["choice"]


def _unstack(choice: xr.DataArray, scores: xr.Dataset) -> xr.DataArray:
    """Turn (..., token) into (..., (frame,) row, col); places without a token get -1."""
    axes = [name for name in ("frame", "row", "col") if name in scores.variables and scores[name].dims == ("token",)]
    places = np.stack([scores[name].values for name in axes])  # (2 or 3, token)
    if len(np.unique(places, axis=1).T) < places.shape[1]:
        raise ValueError(f"choice_maps: several tokens lie at one place: give each its own {axes}")
    bare = choice.drop_vars([name for name in choice.coords if choice[name].dims == ("token",)])
    bare = bare.assign_coords({name: ("token", row) for name, row in zip(axes, places, strict=True)})
    return bare.set_index(token=axes).unstack("token", fill_value=-1)


def _shares(choice: xr.DataArray, orders: NDArray[Any], shifts: NDArray[Any]) -> dict[str, Described]:
    share = lazily(
        predictor_share, choice, core=("token",), out=("predictor",), sizes={"predictor": len(orders)},
        kwargs={"predictors": len(orders)},
    )  # (..., step, predictor)  # fmt: skip
    of_order = xr.DataArray(orders == np.unique(orders)[:, None], dims=("chosen_order", "predictor"))
    of_shift = xr.DataArray((shifts == np.unique(shifts)[:, None]) & (orders > 0), dims=("chosen_shift", "predictor"))
    shift_share = xr.dot(share, of_shift.astype(float), dim="predictor")
    total = shift_share.sum("chosen_shift", skipna=False)
    entropy = lazily(entr, share, core=("",)).sum("predictor", skipna=False)
    return {
        "share": (share, "share of tokens that choose the predictor", "1"),
        "order_share": (xr.dot(share, of_order.astype(float), dim="predictor"), "share of tokens by order", "1"),
        "shift_share": (shift_share / total.where(total > 0), "share by shift among tokens of order above 0", "1"),
        "entropy": (entropy / np.log(2), "entropy of the choices over the tokens", "bit"),
    }


Array = NDArray[np.floating]


def predictor_share(choice: NDArray[Any], *, predictors: int) -> Array:
    """Turn (..., token) into (..., predictor), NaN at full steps."""
    share = np.stack([(choice == p).mean(axis=-1) for p in range(predictors)], axis=-1)
    return np.where((choice >= 0).any(axis=-1, keepdims=True), share, np.nan)


def switching(choice: NDArray[Any], anchor: NDArray[Any]) -> tuple[Array, Array]:
    """Return the share of the tokens whose choice differs from that at the skip step before.

    Args:
        choice: (..., step, token), -1 at full steps.
        anchor: the full step before each step, (..., step).

    Returns:
        (..., step) where that skip step has the same anchor, and (..., step) where it has another; NaN otherwise.
    """
    skipped = (choice >= 0).any(axis=-1)  # (..., step)
    newest = np.maximum.accumulate(np.where(skipped, np.arange(skipped.shape[-1]), -1), axis=-1)  # (..., step)
    before = np.concatenate([np.full_like(newest[..., :1], -1), newest[..., :-1]], axis=-1)  # (..., step)
    known = skipped & (before >= 0)
    before = before.clip(min=0)
    changed = (choice != np.take_along_axis(choice, before[..., None], axis=-2)).mean(axis=-1)  # (..., step)
    same = np.broadcast_to(anchor, skipped.shape) == np.take_along_axis(
        np.broadcast_to(anchor, skipped.shape), before, axis=-1
    )
    return np.where(known & same, changed, np.nan), np.where(known & ~same, changed, np.nan)


def morans_i(maps: Array) -> tuple[Array, Array]:
    """Return Moran's I of maps with rook neighbours and binary weights, and its mean under permutation, -1 / (N - 1).

    I = N / W sum_ij w_ij z_i z_j / sum_i z_i^2, with z the values minus their mean, W the sum of the weights.

    Args:
        maps: (..., row, col); places that are NaN do not exist.

    Returns:
        Both (...), NaN where the map is constant, or no two neighbours exist.
    """
    exists = ~np.isnan(maps)
    count = exists.sum(axis=(-2, -1))  # N
    varies = (np.where(exists, maps, -np.inf).max((-2, -1)) > np.where(exists, maps, np.inf).min((-2, -1))) & (
        count > 1
    )
    mean = np.where(exists, maps, 0.0).sum(axis=(-2, -1)) / np.maximum(count, 1)
    z = np.where(exists, maps - mean[..., None, None], 0.0)
    products, pairs = (
        (v[..., 1:, :] * v[..., :-1, :]).sum((-2, -1)) + (v[..., 1:] * v[..., :-1]).sum((-2, -1))
        for v in (z, exists.astype(np.float64))
    )
    square = (z * z).sum(axis=(-2, -1))
    defined = varies & (pairs > 0)
    index = count * products / np.where(defined, pairs * square, np.nan)  # each pair counts twice above and below
    return index, -1.0 / np.where(defined, count - 1, np.nan)
