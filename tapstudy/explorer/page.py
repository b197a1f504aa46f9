"""One self-contained page: data, script and style in one file, nothing loaded from anywhere."""

from __future__ import annotations

import html
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tapstudy.explorer.encode import pack, quantise
from tapstudy.explorer.layers import (
    BEST,
    CHOSEN,
    NOTHING,
    category_colours,
    horizon_label,
    layers_of,
    scale_colours,
)

QUANTISED = ("proxy_loss", "true_error", "regret", "probe_norm")
EXACT = ("choice", "is_full", "distance", "is_distinct", "image")


def page(data: xr.Dataset, *, beside: xr.Dataset | None = None) -> str:
    """Return the explorer as HTML text.

    Args:
        data: as `prepare` makes it, or, with `beside` to its right, `prepare_pair`.
    """
    folder = files("tapstudy.explorer") / "web"
    parts = {name: (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css")}
    script = "\n".join(
        (folder / name).read_text(encoding="utf-8") for name in ("data.js", "charts.js", "pane.js", "app.js")
    )
    # inside a script element only "<" could end the element; these three are also safe in JSON strings
    told = contents(data) | ({} if beside is None else {"beside": contents(beside)})
    content = json.dumps(told, allow_nan=False)
    for character in "<>&":
        content = content.replace(character, f"\\u{ord(character):04x}")
    filled = {
        "title": html.escape(data.attrs["title"]),
        "style": parts["page.css"],
        "script": script,
        "data": content,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda mark: filled[mark[1]], parts["page.html"])


def write_page(data: xr.Dataset, path: str | Path, *, beside: xr.Dataset | None = None) -> Path:
    """Write the page of a prepared dataset, or of two side by side.

    Raises:
        FileNotFoundError: the folder is not there.
        ValueError: the path is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    if path.is_dir():
        raise ValueError(f"cannot write {path}: it is a folder; name a file, such as {path / 'page.html'}")
    path.write_text(page(data, beside=beside), encoding="utf-8")
    return path


def embed(data: xr.Dataset, *, beside: xr.Dataset | None = None, height: int = 1200) -> Any:
    """Show the page of a prepared dataset, or of two side by side, in a frame of a notebook, `height` pixels high."""
    from IPython.display import HTML

    text = html.escape(page(data, beside=beside))
    frame = f'<iframe srcdoc="{text}" style="width: 100%; height: {height}px; border: 0"></iframe>'
    return HTML(f"<div>{frame}</div>")


def contents(data: xr.Dataset) -> dict[str, Any]:
    """Tell what the page knows, for JSON: arrays packed, texts as they are."""
    categories = category_colours(data)
    arrays: dict[str, Any] = {name: pack(data[name].values) for name in EXACT if name in data}
    for name in QUANTISED:
        if name in data:
            codes, scale = quantise(data[name].values)
            arrays[name] = pack(codes) | {"scale": scale}
    layers = [
        layer._asdict()
        | {"low": data[layer.name].attrs.get("low"), "high": data[layer.name].attrs.get("high")}
        | {"colours": sorted(categories.get(layer.name, {}).items())}
        for layer in layers_of(data)
    ]
    orders, shifts = data["order"].values.tolist(), data["shift"].values.tolist()
    return {
        "title": data.attrs["title"],
        "samples": [
            {"number": int(number), "name": str(name)}
            for number, name in zip(data["number"].values, data["name"].values, strict=True)
        ],
        "contexts": [str(name) for name in data["context"].values],
        "steps": data["step"].values.tolist(),
        "sigma": _numbers(data, "sigma"),
        "grid": data.attrs["grid"],
        "predictors": [
            {"order": order, "shift": shift, "horizon": horizon_label(shift), "colour": categories["choice"][p]}
            for p, (order, shift) in enumerate(zip(orders, shifts, strict=True))
        ],
        "plain": data.attrs["plain"],
        "opens": data.attrs["opens"],
        "layers": layers,
        "imageDims": list(data["image"].dims) if "image" in data else [],
        "imageName": data["image"].attrs["long_name"] if "image" in data else "no image",
        "colours": {"chosen": CHOSEN, "best": BEST, "nothing": NOTHING, "scale": scale_colours()},
        "arrays": arrays,
    }


def _numbers(data: xr.Dataset, name: str) -> list[float] | None:
    """Return a coordinate of step; None where it is not there or not finite."""
    if name not in data.coords or not np.isfinite(data[name].values).all():
        return None
    return [float(value) for value in data[name].values]
