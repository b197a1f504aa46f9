"""The methods a sweep can run, and which settings make a difference to each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tapstudy.policies.base import Policy
from tapstudy.policies.config import DECISIVE, TAPConfig
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.shuffled import ShuffledPolicy
from tapstudy.policies.tap import TAPPolicy

SCHEDULE = ("interval", "warmup_steps", "cooldown_steps", "full_steps")
GRANULARITY = ("granularity", "region_size")
PROBE = ("distance", "probe_depth", "probe_dtype")


def _all_but(*names: str) -> tuple[str, ...]:
    return tuple(name for name in DECISIVE if name not in names)


@dataclass(frozen=True)
class Method:
    """What a cell can run.

    Attributes:
        policy: makes its policy from a configuration and a seed; None is plain sampling.
        reads: settings of TAPConfig that make a difference to it; the others count as not set.
        implied: settings that its name stands for.
        draws: whether the seed makes a difference.
    """

    policy: Callable[[TAPConfig, int], Policy] | None
    reads: tuple[str, ...]
    implied: Mapping[str, Any]
    draws: bool = False


METHODS = {
    "reference": Method(None, (), {}),
    # plain sampling with as many steps as the schedule has full ones
    "fewer": Method(None, SCHEDULE, {"orders": (0,)}),
    "tap": Method(lambda config, _: TAPPolicy(config), _all_but(), {}),
    "step": Method(lambda config, _: TAPPolicy(config), _all_but(*GRANULARITY), {"granularity": "step"}),
    "shuffled": Method(lambda config, seed: ShuffledPolicy(config, seed=seed), _all_but(), {}, draws=True),
    "random": Method(
        lambda config, seed: RandomPolicy(config, seed=seed), _all_but(*GRANULARITY, *PROBE), {}, draws=True
    ),
    "oracle": Method(lambda config, _: OraclePolicy(config), _all_but(*PROBE), {}),
    "oracle-latent": Method(
        lambda config, _: OraclePolicy(config), _all_but(*PROBE, "residual"), {"residual": "latent"}
    ),
}
FIXED = re.compile(r"fixed(\d+)(?:-(\d+(?:\.\d+)?))?")


def find_method(name: str) -> Method:
    """The method of that name; "fixed2-1" is the predictor of order 2 and shift 1.

    Raises:
        ValueError: no such method, with the nearest one.
    """
    if name in METHODS:
        return METHODS[name]
    if isinstance(name, str) and (found := FIXED.fullmatch(name)):
        order, shift = int(found[1]), float(found[2] or 0)
        return Method(
            lambda config, _: FixedPolicy(order, shift, config=config),
            _all_but(*GRANULARITY, *PROBE, "orders", "shifts"),
            {"orders": (order,), "shifts": (shift,)},
        )
    near = difflib.get_close_matches(str(name), [*METHODS, "fixed0", "fixed1", "fixed2"], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no method {name!r}; {hint}There are {', '.join(METHODS)}, and fixed<order> and fixed<order>-<shift>"
    )
