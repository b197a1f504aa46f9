"""Which predictor every token takes: maps over the image, and what they look like in numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.special import entr

from tapstudy.analysis.map_measures import morans_i, predictor_share, switching
from tapstudy.analysis.require import require
from tapstudy.analysis.result import means, shares


def choice_maps(scores: xr.Dataset) -> xr.Dataset:
    """The choices as maps.

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
    options: dict[str, Any] = {"dask": "parallelized"}
    order = xr.apply_ufunc(_look_up, grid, kwargs={"table": _orders(orders)}, output_dtypes=[np.int16], **options)
    shift = xr.apply_ufunc(
        _look_up, grid, kwargs={"table": _shifts(orders, shifts)}, output_dtypes=[np.float64], **options
    )
    maps = xr.Dataset(
        {
            "choice": grid.assign_attrs(long_name="chosen predictor (-1 at full steps)", units="1"),
            "chosen_order": order.assign_attrs(long_name="order of the chosen predictor (-1 at full steps)", units="1"),
            "chosen_shift": shift.assign_attrs(long_name="shift of the chosen predictor's horizon", units="step"),
        }
    )
    return maps.assign_coords({name: scores[name] for name in ("order", "shift", "distance") if name in scores})


def maps_summary(maps: xr.Dataset) -> xr.Dataset:
    """Of `choice_maps`: how often each order and shift is chosen; order and predictor are names, not quantities."""
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
    """Of `choice_statistics`: shares by order and by shift, and what is measured at every skip step.

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

    return xr.apply_ufunc(
        pick,
        values,
        choice,
        input_core_dims=[["predictor"], []],
        dask="parallelized",
        output_dtypes=[values.dtype],
    )


def choice_statistics(scores: xr.Dataset) -> xr.Dataset:
    """The choices of a step in numbers.

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
        index, expected = xr.apply_ufunc(
            morans_i,
            values,
            input_core_dims=[["row", "col"]],
            output_core_dims=[[], []],
            dask="parallelized",
            dask_gufunc_kwargs={"allow_rechunk": True},
            output_dtypes=[np.float64, np.float64],
        )
        statistics[f"moran_{name}"] = index.assign_attrs(long_name=f"Moran's I of the chosen {name}", units="1")
        statistics[f"moran_{name}_expected"] = expected.assign_attrs(
            long_name=f"Moran's I of the chosen {name} expected under permutation", units="1"
        )
    within, across = xr.apply_ufunc(
        switching,
        choice,
        scores["step"] - scores["distance"],  # the anchor
        input_core_dims=[["step", "token"], ["step"]],
        output_core_dims=[["step"], ["step"]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True},
        output_dtypes=[np.float64, np.float64],
    )
    for name, values in (("within a window", within), ("across anchors", across)):
        values = values.assign_attrs(long_name=f"share of tokens that switch predictor {name}", units="1")
        statistics[f"switch_{name.split()[0]}"] = values
    coords: dict[str, Any] = {name: scores[name] for name in ("order", "shift", "distance")}
    coords |= {"chosen_order": np.unique(orders), "chosen_shift": np.unique(shifts)}
    return xr.Dataset(statistics).assign_coords(coords)


def _choice(scores: xr.Dataset, analysis: str) -> xr.DataArray:
    token, predictor = ("token",), ("predictor",)
    require(scores, analysis, choice=("step", "token"), row=token, col=token, order=predictor, shift=predictor)
    return scores["choice"]


def _unstack(choice: xr.DataArray, scores: xr.Dataset) -> xr.DataArray:
    """(..., token) -> (..., (frame,) row, col); places without a token get -1."""
    axes = [name for name in ("frame", "row", "col") if name in scores.variables and scores[name].dims == ("token",)]
    places = np.stack([scores[name].values for name in axes])  # (2 or 3, token)
    if len(np.unique(places, axis=1).T) < places.shape[1]:
        raise ValueError(f"choice_maps: several tokens lie at one place: give each its own {axes}")
    bare = choice.drop_vars([name for name in choice.coords if choice[name].dims == ("token",)])
    bare = bare.assign_coords({name: ("token", row) for name, row in zip(axes, places, strict=True)})
    return bare.set_index(token=axes).unstack("token", fill_value=-1)


def _orders(orders: NDArray[Any]) -> NDArray[np.int16]:
    return np.append(orders, -1).astype(np.int16)  # index -1, a full step, finds the last


def _shifts(orders: NDArray[Any], shifts: NDArray[Any]) -> NDArray[np.float64]:
    return np.append(np.where(orders == 0, np.nan, shifts), np.nan)


def _look_up(choice: NDArray[Any], *, table: NDArray[Any]) -> NDArray[Any]:
    return table[choice]


def _shares(choice: xr.DataArray, orders: NDArray[Any], shifts: NDArray[Any]) -> dict[str, xr.DataArray]:
    share = xr.apply_ufunc(
        predictor_share,
        choice,
        kwargs={"predictors": len(orders)},
        input_core_dims=[["token"]],
        output_core_dims=[["predictor"]],
        dask="parallelized",
        dask_gufunc_kwargs={"allow_rechunk": True, "output_sizes": {"predictor": len(orders)}},
        output_dtypes=[np.float64],
    )  # (..., step, predictor)
    of_order = xr.DataArray(orders == np.unique(orders)[:, None], dims=("chosen_order", "predictor"))
    of_shift = xr.DataArray((shifts == np.unique(shifts)[:, None]) & (orders > 0), dims=("chosen_shift", "predictor"))
    shift_share = xr.dot(share, of_shift.astype(float), dim="predictor")
    total = shift_share.sum("chosen_shift", skipna=False)
    entropy = xr.apply_ufunc(entr, share, dask="parallelized", output_dtypes=[np.float64]).sum(
        "predictor", skipna=False
    )
    found = {
        "share": (share, "share of tokens that choose the predictor", "1"),
        "order_share": (xr.dot(share, of_order.astype(float), dim="predictor"), "share of tokens by order", "1"),
        "shift_share": (shift_share / total.where(total > 0), "share by shift among tokens of order above 0", "1"),
        "entropy": (entropy / np.log(2), "entropy of the choices over the tokens", "bit"),
    }
    return {name: values.assign_attrs(long_name=text, units=unit) for name, (values, text, unit) in found.items()}
