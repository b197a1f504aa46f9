"""Memory that a policy or a third-party cache holds between steps, measured, beside what the formula says.

Measured are the storages of all tensors that the state holds, each counted once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from tapstudy.bench.speed.methods import THIRD_PARTY, Plan
from tapstudy.bench.speed.subjects import PRESETS, Subject, check_name, make_subject, split_name
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.machine import find_device
from tapstudy.policies.base import RunInfo
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy


@dataclass(frozen=True)
class Features:
    """Tell what a policy is shown at a full step.

    Attributes:
        batch: samples in one context.
        probe_width, residual_width: channels.
        probe_dtype: the model's.
    """

    batch: int
    tokens: int
    probe_width: int
    residual_width: int
    probe_dtype: torch.dtype


def history_bytes(shape: Features, *, anchors: int, history_dtype: torch.dtype) -> int:
    """Return j x batch x tokens x (probe width x probe bytes + residual width x residual bytes)."""
    token = shape.probe_width * shape.probe_dtype.itemsize + shape.residual_width * history_dtype.itemsize
    return anchors * shape.batch * shape.tokens * token


def held_bytes(*owners: Any) -> int:
    """Count the bytes of the storages of all tensors that are reachable from objects, but not through modules."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in _tensors(owners)}
    return sum(storages.values())


def _tensors(*owners: Any) -> Iterator[Tensor]:
    seen: dict[int, Any] = {}
    waiting = list(owners)
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple | set):
            waiting += one
        elif not isinstance(one, nn.Module | type):
            waiting += vars(one).values() if hasattr(one, "__dict__") else ()


def memory(
    names: Sequence[str],
    plan: Plan | None = None,
    *,
    history_dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    batch_size: int | None = None,
    device: str = "auto",
) -> xr.Dataset:
    """Return memory of TAP and of third-party caches on models, at the end of a loop that is just long enough.

    Presets do not run on a CPU: the policy is shown features of their shape that have no values, in bfloat16.

    Returns:
        Dims `model`, `method`. `history` (anchors), `history_formula` and `peak` (growth of the device's peak over
        plain sampling, NaN on a CPU), in bytes. Third-party caches have `history`, all that their state holds, or NaN
        where they do not run.

    Raises:
        ValueError: no such model or device.
    """
    plan, place = plan or Plan(), find_device(device)
    for name in names:
        check_name(name)
    found = []
    for name in names:
        rows = {}
        model, images = split_name(name)
        shown = model in PRESETS and place.type == "cpu"
        subject = None if shown else make_subject(name, batch_size=batch_size, device=place)
        plain = np.nan if subject is None else _peak(subject, lambda: subject.loop(2))  # noqa: B023
        for dtype in history_dtypes:
            config = replace(plan.config, history_dtype=dtype)
            count = images or batch_size or 1
            row = _shown(model, count, config, plan) if subject is None else _run(subject, config, plan)
            row["peak"] -= plain
            rows[f"tap {str(dtype).removeprefix('torch.')}"] = row
        if subject is not None:
            rows |= {name: {"history": _third_party_bytes(subject, plan, name)} for name in THIRD_PARTY}
        found.append(_dataset(name, rows))
    methods = dict.fromkeys(method for one in found for method in one["method"].values.tolist())
    whole = xr.concat([one.reindex({"method": list(methods)}) for one in found], dim="model", join="exact")
    return whole.assign_attrs(device=str(place), steps=plan.steps, interval=plan.interval)


def _shown(name: str, batch: int, config: TAPConfig, plan: Plan) -> dict[str, float]:
    """Measure a policy that is shown features on the meta device."""
    preset = PRESETS[name]
    shape = Features(batch, prod(preset.size.grid), preset.width, preset.width, torch.bfloat16)
    policy = TAPPolicy(config)
    policy.begin(RunInfo(plan.steps, preset.size.grid))
    probe = torch.empty(batch, shape.tokens, shape.probe_width, dtype=shape.probe_dtype, device="meta")
    residual = torch.empty(batch, shape.tokens, shape.residual_width, device="meta")
    for step in plan.full:
        policy.observe(step, probe, residual)
    formula = history_bytes(shape, anchors=_anchors(config, plan), history_dtype=config.history_dtype)
    return {"history": held_bytes(policy.anchors), "history_formula": formula, "peak": np.nan}


def _run(subject: Subject, config: TAPConfig, plan: Plan) -> dict[str, float]:
    """Measure a policy along a loop."""
    states: dict[str, int] = {}
    shapes: dict[str, Features] = {}

    def keep(event: Any) -> None:
        if event.kind == "full":
            probe, residual = event.probe, event.residual
            batch, tokens, width = probe.shape
            shapes[event.context] = Features(batch, tokens, width, residual.shape[-1], probe.dtype)
        states[event.context] = held_bytes(event.policy.anchors)

    with apply_policy(subject.target, TAPPolicy(config)) as handle:
        handle.listen(keep)
        peak = _peak(subject, lambda: subject.loop(plan.steps))
    anchors = _anchors(config, plan)
    return {
        "history": sum(states.values()),
        "history_formula": sum(
            history_bytes(shape, anchors=anchors, history_dtype=config.history_dtype) for shape in shapes.values()
        ),
        "peak": peak,
    }


def _anchors(config: TAPConfig, plan: Plan) -> int:
    return min(config.family.num_anchors, len(plan.full))


def _third_party_bytes(subject: Subject, plan: Plan, name: str) -> float:
    """Measure what a third-party cache holds when the model's last call ends."""
    held = [0]
    try:
        with THIRD_PARTY[name](subject.target, plan) as cache:
            # cache-dit keeps its state in an object on the transformer
            owners = [cache.managers, getattr(subject.model, "_context_manager", None)]
            hook = subject.model.register_forward_hook(lambda *_: held.append(held_bytes(owners)))
            try:
                subject.loop(plan.steps)
            finally:
                hook.remove()
    except Exception:  # one that does not run on this model has no memory to measure
        return np.nan
    return max(held)


def _peak(subject: Subject, run: Any) -> float:
    if subject.device.type != "cuda":
        run()
        return np.nan
    torch.cuda.reset_peak_memory_stats(subject.device)
    run()
    return torch.cuda.max_memory_allocated(subject.device)


NAMES = {
    "history": "what the history holds, measured",
    "history_formula": "what the history holds, by formula",
    "peak": "growth of the device's peak memory",
}


def _dataset(model: str, rows: dict[str, dict[str, float]]) -> xr.Dataset:
    values = {
        name: ("method", [rows[method].get(name, np.nan) for method in rows], {"long_name": text, "units": "byte"})
        for name, text in NAMES.items()
    }
    return xr.Dataset(values, coords={"method": list(rows)}).expand_dims(model=[Path(model).name])
