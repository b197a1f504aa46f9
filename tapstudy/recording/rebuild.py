"""Make again what a recording was made with, from its configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.recording.damage import RecordingError
from tapstudy.recording.store import read_attributes


def read_configuration(path: str | Path) -> dict[str, Any]:
    """What `record` was called with; raises RecordingError where there is no recording."""
    return json.loads(read_attributes(path)["configuration"])


def recorder_arguments(configuration: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `record` that go on with a recording of this configuration, but for pipe and path.

    Raises RecordingError if it holds what only Python code can make again.
    """
    if configuration["reduce"]:
        raise RecordingError(
            f"the recording reduces its features by {configuration['reduce']}: go on with it from Python, with the "
            "same call of tapstudy.record"
        )
    arguments = {name: configuration[name] for name in ("calls", "fields", "depths", "dtype", "transformer", "model")}
    policy = rebuild_policy(configuration["policy"])
    if configuration["mode"] == "teacher-forced":
        return {**arguments, "config": policy.config}
    return {**arguments, "policy": policy}


def rebuild_policy(description: dict[str, Any]) -> AnchoredPolicy:
    """Undo `record.describe` for the policies that come with the package and the family of their configuration."""
    config = TAPConfig.from_plain(description["config"])
    match description["class"]:
        case "TAPPolicy":
            policy: AnchoredPolicy = TAPPolicy(config)
        case "FixedPolicy":
            policy = FixedPolicy(config.orders[0], config.shifts[0], config=config)
        case "OraclePolicy":
            policy = OraclePolicy(config, distance=description["settings"]["distance"])
        case "RandomPolicy":
            policy = RandomPolicy(config, seed=description["settings"]["seed"])
        case other:
            raise RecordingError(f"the recording was made under {other}: go on with it from Python")
    if repr(policy.family) != description["family"]:
        raise RecordingError(f"the recording has a family of its own, {description['family']}: go on from Python")
    return policy
