"""The settings a recording was made with, which hold for its rescoring unless others are asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.core.schedule import mask_text
from tapstudy.policies.config import TAPConfig

# What to rescore with: a configuration, changes to the recording's own, or None for that one as it is.
Asked = TAPConfig | Mapping[str, Any] | None


@dataclass(frozen=True)
class Settled:
    """Hold a configuration and where its schedule comes from, in words."""

    config: TAPConfig
    schedule: str

    def told(self, num_steps: int, **more: str) -> str:
        """Write it as JSON, for the attributes of a result."""
        mask = mask_text(self.config.schedule.steps(num_steps), num_steps)
        return json.dumps({"config": self.config.to_dict(), "mask": mask, "schedule": self.schedule, **more})


def settle(recording: xr.Dataset, asked: Asked, analysis: str) -> Settled:
    """Tell what to rescore a recording with.

    Raises:
        TypeError, ValueError: invalid settings; a recording that has no one schedule of its own.
    """
    if isinstance(asked, TAPConfig):
        return Settled(asked, "as asked")
    changes = dict(asked or {})
    scheduling = {"interval", "warmup_steps", "full_steps"} & changes.keys()
    if scheduling == {"full_steps"} and changes["full_steps"] is None:
        scheduling = set()
    own = _recorded_config(recording, analysis, needs_schedule=not scheduling)
    base = own or TAPConfig()
    if scheduling - {"full_steps"}:
        base = replace(base, full_steps=None)  # else these would go on deciding
    config = TAPConfig.of({**{field.name: getattr(base, field.name) for field in fields(base)}, **changes})
    if scheduling or "cooldown_steps" in changes:
        return Settled(config, "as asked")
    return Settled(config, "the recording's own" if own else "TAP's default, as the recording does not tell its own")


def recorded_settings(recording: xr.Dataset) -> dict[str, Any]:
    """Return the configuration a recording was made with, as JSON holds it; empty where it does not tell."""
    found: dict[str, Any] = json.loads(recording.attrs.get("configuration", "{}")).get("policy", {}).get("config", {})
    return found


def _recorded_config(recording: xr.Dataset, analysis: str, *, needs_schedule: bool) -> TAPConfig | None:
    settings = recorded_settings(recording)
    if not settings:
        return None
    config = TAPConfig.from_dict(settings)
    closed_loop = json.loads(recording.attrs["configuration"]).get("mode") == "closed-loop"
    if not (needs_schedule and closed_loop and "is_full" in recording):
        return config
    # what the policy decided as it went, and steps that ran in full although it wanted to skip, are in the data only
    is_full = recording["is_full"].transpose(..., "step").values
    rows = is_full.reshape(-1, is_full.shape[-1])  # -1 where a context has no such step
    full = (rows == 1).any(axis=0)
    if (full & (rows == 0)).any():
        raise ValueError(
            f"{analysis}: samples or contexts of the recording ran in full at different steps, so it has no one "
            "schedule: say which, with interval or full_steps"
        )
    steps = tuple(np.flatnonzero(full).tolist())
    return config if steps == config.schedule.steps(len(full)) else replace(config, full_steps=steps)
