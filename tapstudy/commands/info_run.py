"""What a recording holds, in words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def describe_run(path: str | Path, *, verify: bool = False) -> str:
    """Return model, samples, dimensions, variables with their sizes on disk, configuration and versions.

    Args:
        verify: read every chunk of the finished samples and compare it with its checksum.

    Raises:
        RecordingError: no recording at `path`; with `verify`, a damaged one (the message tells every damaged chunk).
    """
    import numpy as np

    from tapstudy.recording.damage import RecordingError, find_damage
    from tapstudy.recording.store import Store, read_attributes

    path = Path(path)
    attrs = read_attributes(path)
    configuration, versions = json.loads(attrs["configuration"]), json.loads(attrs["versions"])
    store = Store.resume(path)
    if store is None:
        return f"{path}: a recording of {configuration['model']} that was cut short before its first step"
    finished = np.flatnonzero(store.finished)
    policy = configuration["policy"]
    lines = [
        f"{path}: {configuration['mode']} recording of {configuration['model']} under {policy['class']}",
        f"samples     {len(finished)} of {store.layout.sizes['sample']} finished",
        "dimensions  " + ", ".join(f"{name} {size}" for name, size in store.layout.sizes.items()),
        "variables",
    ]
    for name in store.layout.variables:
        array: Any = store.group[name]
        size = sum(file.stat().st_size for file in (path / name).rglob("*") if file.is_file())
        lines.append(f"  {name:<16} {array.dtype!s:<8} {size / 2**20:9.3f} MiB  {array.attrs['long_name']}")
    lines.append("configuration")
    shown = {**configuration, "calls": f"{len(configuration['calls'])}, the first {configuration['calls'][0]}"}
    lines += [f"  {name:<16} {value}" for name, value in shown.items() if name not in ("model", "mode", "policy")]
    lines += [f"  {name:<16} {value}" for name, value in {**policy["config"], **policy["settings"]}.items()]
    lines.append("versions    " + ", ".join(f"{name} {version}" for name, version in versions.items()))
    if verify:
        damage = find_damage(path, finished, checksums=True)
        if damage:
            raise RecordingError("\n".join([*lines, f"DAMAGED: {len(damage)} chunks", *(f"  {d}" for d in damage)]))
        lines.append("verified    every chunk matches its checksum")
    return "\n".join(lines)
