"""Rebuild what a recording was made with, from its configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.recording.damage import RecordingError
from tapstudy.recording.inputs import restore_inputs
from tapstudy.recording.previews import preview_arguments
from tapstudy.recording.store import read_attributes, read_inputs


def read_configuration(path: str | Path) -> dict[str, Any]:
    """Read what `record` was called with; raises RecordingError where there is no recording."""
    return json.loads(read_attributes(path)["configuration"])


def recorder_arguments(configuration: dict[str, Any], path: str | Path) -> dict[str, Any]:
    """Make the keyword arguments of `record` that resume the recording at `path`, of this configuration.

    All but pipe and path. Images, arrays and tensors of the calls come from the recording.

    Raises RecordingError if it holds what only Python code can make again, or no more than a hash of such an input.
    """
    if configuration["reduce"]:
        raise RecordingError(
            f"the recording reduces its features by {configuration['reduce']}: resume it from Python, with the same "
            "call of tapstudy.record"
        )
    arguments = {name: configuration[name] for name in ("fields", "depths", "dtype", "transformer", "model")}
    arguments |= {"modules": configuration.get("modules"), **preview_arguments(configuration)}
    kept = read_inputs(path)
    try:
        arguments["calls"] = [restore_inputs(call, kept, f"call {i}") for i, call in enumerate(configuration["calls"])]
    except KeyError as lacking:
        raise RecordingError(
            f"the recording holds no more than a hash of {lacking.args[0]}: resume it from Python, with the same call "
            "of tapstudy.record (keep_inputs=True keeps what the calls are given)"
        ) from None
    policy = rebuild_policy(configuration["policy"])
    if configuration["mode"] == "teacher-forced":
        return {**arguments, "config": policy.config}
    return {**arguments, "policy": policy}


def rebuild_policy(description: dict[str, Any]) -> AnchoredPolicy:
    """Rebuild a policy from what `record.describe` wrote of it, if it and its family come with the package."""
    config = TAPConfig.from_dict(description["config"])
    name = description["class"]
    makers: dict[str, Callable[..., AnchoredPolicy]] = {
        "TAPPolicy": TAPPolicy,
        "FixedPolicy": lambda config: FixedPolicy(config.orders[0], config.shifts[0], config=config),
        "OraclePolicy": OraclePolicy,
        "RandomPolicy": RandomPolicy,
    }
    if name not in makers:
        raise RecordingError(f"the recording was made under {name}: resume it from Python")
    policy = makers[name](config, **description["settings"])
    if repr(policy.family) != description["family"]:
        raise RecordingError(f"the recording has a family of its own, {description['family']}: resume it from Python")
    return policy
