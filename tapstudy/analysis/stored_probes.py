"""What storing the probes of full steps in fewer bits does to the choices."""

from __future__ import annotations

from dataclasses import replace

import torch
import xarray as xr

from tapstudy.analysis.own_settings import Asked, settle
from tapstudy.analysis.rescoring import rescore
from tapstudy.analysis.result import described, means


def stored_probes(recording: xr.Dataset, config: Asked = None) -> xr.Dataset:
    """How many tokens choose otherwise when stored probes are rounded, and what that costs, teacher-forced.

    Args:
        recording: as for `rescore`.
        config: as for `rescore`, with the `probe_dtype` in question; bfloat16 where it has none.

    Returns:
        Lazily, per image the means over contexts, skip steps and tokens, (sample,): `changed`, the share of tokens
        with another choice; `true_error` of the choice by exact probes; and `true_error_change` by rounded ones. The
        attribute `rescoring` is as `rescore` gives it.

    Raises:
        ValueError: as `rescore`.
    """
    settled = settle(recording, config, "stored_probes")
    config = settled.config
    rounded = replace(config, probe_dtype=config.probe_dtype or torch.bfloat16)
    exact, stored = (
        rescore(recording, one, selected_only=True)[["choice", "chosen_true_error", "is_full"]]
        for one in (replace(config, probe_dtype=None), rounded)
    )
    skips = exact["is_full"] == 0  # (..., step)
    dims = [dim for dim in exact["choice"].dims if dim != "sample"]
    error = exact["chosen_true_error"].mean(dims)  # of skip steps, as others have none
    name = str(rounded.probe_dtype).removeprefix("torch.")
    changed = (exact["choice"] != stored["choice"]).where(skips).mean(dims)
    growth = stored["chosen_true_error"].mean(dims) / error - 1
    found = described({
        "changed": (changed, f"share of tokens that choose otherwise by probes stored in {name}", "1"),
        "true_error": (error, "relative error of the choice by exact probes", "1"),
        "true_error_change": (growth, f"growth of that error by probes stored in {name}, relative", "1"),
    })  # fmt: skip
    told = settled.told(recording.sizes["step"], family=repr(config.family))
    return found.assign_attrs(probe_dtype=name, rescoring=told)


def stored_summary(found: xr.Dataset) -> xr.Dataset:
    """Of `stored_probes`: all of it."""
    return means(found, *map(str, found.data_vars))
