"""What a figure or a page says of its data in small print: model, images, settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr


def caption(data: xr.Dataset, model: str = "") -> str:
    """Return model, images and settings of a recording or a table of runs.

    Such as "mnist-dit · 30 images (10 labels, seeds 31 to 33) · 50 steps · guidance 2". What the data
    does not tell is left out.

    Args:
        data: a recording, or a table with the attribute `plan`; `seed` and `label` (sample).
        model: of a table that does not tell it.
    """
    made, images = _settings(data), data.sizes.get("sample", 0)
    parts = [made.get("model") or model, _images(data) if images else ""]
    if steps := made.get("steps"):
        parts.append(f"{steps:g} steps")
    if (guidance := made.get("guidance")) is not None:
        parts.append(f"guidance {guidance:g}" if isinstance(guidance, float) else f"guidance {guidance}")
    return " · ".join(part for part in parts if part)


def _settings(data: xr.Dataset) -> dict[str, Any]:
    if "plan" in data.attrs:
        found: dict[str, Any] = json.loads(data.attrs["plan"])
        return found
    made = json.loads(data.attrs.get("configuration", "{}"))
    call = (made.get("calls") or [{}])[0]
    told = {"model": made.get("model"), "steps": data.sizes.get("step"), "guidance": call.get("guidance_scale")}
    return {name: value or _of_all(data, name) for name, value in told.items()}


def _of_all(data: xr.Dataset, name: str) -> Any:
    """Return an attribute, or a coordinate that has one value."""
    values = np.unique(data[name].values) if name in data.coords else [data.attrs.get(name)]
    return values[0] if len(values) == 1 else None


def _images(data: xr.Dataset) -> str:
    count, parts = data.sizes["sample"], []
    if "label" in data.coords:
        labels = {str(label) for label in data["label"].values}
        kind = "label" if all(kind_of(label) == "label" for label in labels) else "prompt"
        parts.append(f"{len(labels)} {kind}{'s' * (len(labels) > 1)}")
    if "seed" in data.coords:
        parts.append(_seeds(np.unique(data["seed"].values).tolist()))
    return f"{count} image{'s' * (count > 1)}" + (f" ({', '.join(parts)})" if parts else "")


def kind_of(label: object) -> str:
    """Tell "label" from "prompt": recordings and tables write both as `label`."""
    return "label" if str(label).isdigit() else "prompt"


def _seeds(seeds: Sequence[int]) -> str:
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    if seeds[-1] - seeds[0] == len(seeds) - 1:
        return f"seeds {seeds[0]} to {seeds[-1]}"
    return f"seeds {', '.join(map(str, seeds))}"
