import json
from dataclasses import replace

import pytest
import torch

from tapstudy import TAPConfig
from tests.table import each_row


def test_bad_settings():
    for settings, error, message in (
        ({"interval": 0}, ValueError, "interval must be at least 1, got 0"),
        ({"interval": 2.5}, TypeError, "interval must be an integer"),
        ({"interval": True}, TypeError, "interval must be an integer"),
        ({"warmup_steps": 0}, ValueError, "warmup_steps must be at least 1"),
        ({"probe_depth": -1}, ValueError, "probe_depth must be at least 0"),
        ({"shifts": (0, -1)}, ValueError, "shifts must be numbers of at least 0"),
        ({"shifts": (0, float("nan"))}, ValueError, "shifts must be numbers of at least 0"),
        ({"shifts": ()}, ValueError, "shifts must not be empty"),
        ({"shifts": 3}, TypeError, "shifts must be a sequence"),
        ({"orders": (0, 0)}, ValueError, "orders must not repeat"),
        ({"orders": (-1,)}, ValueError, "orders must be at least 0"),
        ({"orders": (0.5,)}, TypeError, "orders must be an integer"),
        ({"distance": "cos"}, ValueError, "distance must be one of"),
        ({"residual": "pixel"}, ValueError, "residual must be one of"),
        ({"differences": "central"}, ValueError, "differences must be one of"),
        ({"basis": "chebyshev"}, ValueError, "basis must be one of"),
        ({"clip": "two"}, ValueError, "clip must be one of"),
        ({"granularity": "head"}, ValueError, "granularity must be one of"),
        ({"history_dtype": torch.int32}, TypeError, "history_dtype must be a floating"),
        ({"probe_dtype": "bfloat16"}, TypeError, "probe_dtype must be a floating"),
        (
            {"history_dtype": torch.float8_e4m3fn},
            ValueError,
            r"history_dtype must have 16 bits or more.*torch.bfloat16",
        ),
        ({"history_dtype": torch.float8_e5m2}, ValueError, "history_dtype must have 16 bits or more"),
        ({"probe_dtype": torch.float8_e5m2}, ValueError, "probe_dtype must have 16 bits or more"),
        ({"history_device": 0}, TypeError, "history_device must be the name of a device"),
        ({"history_device": "gpu9"}, ValueError, "torch knows no history_device 'gpu9'"),
        ({"full_steps": (1, 5)}, ValueError, "must hold step 0"),
        ({"full_steps": (0, 1, 5), "orders": (0, 7)}, ValueError, "order 7 needs 8 anchors, but full_steps has only 3"),
        ({"intervall": 4}, TypeError, "no field 'intervall'; did you mean 'interval'"),
        ({"zzz": 4}, TypeError, "known fields: interval, warmup_steps"),
    ):
        with pytest.raises(error, match=message):
            TAPConfig.of(settings)


def test_settings_are_frozen_and_sorted():
    config = TAPConfig(orders=[2, 0], shifts=[1, 0])
    assert config.orders == (0, 2)
    assert config.shifts == (0, 1)
    with pytest.raises(AttributeError):
        config.interval = 3


def test_family_has_fifteen_members_in_order_of_preference():
    labels = TAPConfig().family.labels
    assert len(labels) == 15
    assert [(label.order, label.shift) for label in labels[:6]] == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]


@each_row("dtype", [None, torch.bfloat16])
def test_plain_settings_and_back(dtype):
    """By way of JSON; where nothing was set they are those of before there was a dtype of stored probes."""
    config = TAPConfig(interval=5, shifts=(0, 0.5), full_steps=(0, 1, 4), probe_dtype=dtype, history_device="cpu")
    plain = json.loads(json.dumps(config.to_dict()))
    assert TAPConfig.from_dict(plain) == replace(config, history_device=None)
    assert plain["history_dtype"] == "float32"
    assert plain.get("probe_dtype", "unset") == ("unset" if dtype is None else "bfloat16")
    assert "history_device" not in plain
    with pytest.raises(TypeError, match="did you mean 'interval'"):
        TAPConfig.from_dict({"intervall": 3})
