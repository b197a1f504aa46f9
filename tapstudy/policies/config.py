"""Hold every option of the method in one frozen object."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any, get_args

import torch

from tapstudy.core.anchors import History
from tapstudy.core.checks import check_integer, unique
from tapstudy.core.schedule import Schedule
from tapstudy.core.scoring import Distance, Granularity
from tapstudy.core.weights import Basis, Differences
from tapstudy.policies.base import ResidualSite
from tapstudy.predictors.taylor import Clip, TaylorFamily


@dataclass(frozen=True, kw_only=True)
class TAPConfig:
    """Set the options of TAP; the defaults are the paper's.

    They make up a `schedule`, a `history` and a `family`; the rest says how tokens choose.

    Args:
        interval: N; a full step, then N - 1 skip steps. 1 never skips.
        warmup_steps: w; the first w steps run in full.
        orders: orders m of the Taylor predictors.
        shifts: s in the horizons k - s (paper: 0..lambda in steps of delta).
        distance: how proxy losses compare predicted and actual probe: "cosine", "l2" or "l1".
        residual: "hidden" (input of the tail norm minus input of the first block), "tail" (that input itself), "latent"
            (model output minus model input) or "output" (that output itself).
        probe_depth: block whose modulated input is the probe; that many blocks run at a skip step.
        differences: "recursive" (the rule of TaylorSeer and TAP) or "divided" (true divided differences).
        basis: "taylor" (powers of the horizon) or "newton" (interpolation through the anchors).
        clip: what happens to horizons below 0: None keeps them, "zero" raises them to 0, "one" raises all below 1.
        history_dtype: dtype of the stored residuals.
        probe_dtype: dtype of the stored probes, None for the model's. A narrower one saves memory and decides near ties
            otherwise (`tapstudy analyze --analysis stored-probes`); sums are as precise all the same.
        cooldown_steps: the last so many steps run in full.
        granularity: who chooses together: "token", "region" (windows of `region_size` tokens squared), "step" (all
            tokens of a sample) or "global" (the whole batch).
        full_steps: explicit full steps, in place of `interval` and `warmup_steps`; must hold step 0.
        region_size: side of a region, in tokens.
        history_device: where anchors are kept, such as "cpu"; None: where the features are. Elsewhere, the device of
            the features holds them at skip steps only, and of one context at a time. "cpu" beside CUDA means pinned
            host memory. Costs a transfer of one anchor per full step and of the whole history per skip step (its size
            over the bandwidth of the bus; `docs/models.md` lists sizes). Changes no result.

        num_steps: number of sampling steps that `full_steps` are for; a run of another number is refused. None: any.

    Raises:
        TypeError, ValueError: an invalid value.
    """

    interval: int = 8
    warmup_steps: int = 3
    orders: tuple[int, ...] = (0, 1, 2)
    shifts: tuple[float, ...] = (0, 1, 2, 3, 4)
    distance: Distance = "cosine"
    residual: ResidualSite = "hidden"
    probe_depth: int = 0
    differences: Differences = "recursive"
    basis: Basis = "taylor"
    clip: Clip = None
    history_dtype: torch.dtype = torch.float32
    cooldown_steps: int = 0
    granularity: Granularity = "token"
    full_steps: tuple[int, ...] | None = None
    region_size: int = 4
    history_device: str | None = field(default=None, repr=False)  # decides nothing
    probe_dtype: torch.dtype | None = None
    num_steps: int | None = field(default=None, repr=False)  # refuses, and decides nothing else

    def __post_init__(self) -> None:
        full_steps, _ = self.schedule.full_steps, self.history  # both are checked as they are made
        object.__setattr__(self, "full_steps", full_steps)
        for name, least in (("probe_depth", 0), ("region_size", 1)):
            check_integer(name, getattr(self, name), least)
        if self.num_steps is not None:
            check_integer("num_steps", self.num_steps, 1 + max(full_steps or (0,)))
        object.__setattr__(self, "orders", tuple(sorted(unique("orders", self.orders))))
        object.__setattr__(self, "shifts", tuple(sorted(unique("shifts", self.shifts))))
        for order in self.orders:
            check_integer("orders", order, 0)
        if any(
            isinstance(shift, bool) or not isinstance(shift, int | float) or not shift >= 0 for shift in self.shifts
        ):
            raise ValueError(f"shifts must be numbers of at least 0 (the horizon is k - s), got {self.shifts}")
        for name, choices in (
            ("distance", get_args(Distance)),
            ("residual", get_args(ResidualSite)),
            ("differences", get_args(Differences)),
            ("basis", get_args(Basis)),
            ("clip", (None, "zero", "one")),
            ("granularity", get_args(Granularity)),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        if full_steps is not None and max(self.orders) >= len(full_steps):
            raise ValueError(
                f"order {max(self.orders)} needs {max(self.orders) + 1} anchors, but full_steps has only "
                f"{len(full_steps)}: {full_steps}; leave the order out or add full steps"
            )

    @cached_property
    def schedule(self) -> Schedule:
        """Which steps run in full."""
        return Schedule(self.interval, self.warmup_steps, self.cooldown_steps, self.full_steps)

    def check_steps(self, num_steps: int | None) -> None:
        """Raise ValueError if the schedule does not fit a run of so many steps, None if nobody knows how many."""
        if self.num_steps is not None and num_steps not in (None, self.num_steps):
            raise ValueError(
                f"the schedule was made for {self.num_steps} steps, and this run has {num_steps}, or a guidance branch "
                f"that joined it late has: sample with {self.num_steps}, with guidance from the first step on, or fit "
                "another one with tapstudy.fit_schedule"
            )
        if self.cooldown_steps and num_steps is None:
            raise ValueError(
                f"cooldown_steps={self.cooldown_steps} needs the number of sampling steps, which a bare "
                "transformer does not tell: apply the policy to the pipeline"
            )

    @property
    def history(self) -> History:
        """How anchors are kept."""
        return History(self.history_dtype, self.probe_dtype, self.history_device)

    @property
    def family(self) -> TaylorFamily:
        """The predictors that tokens choose from."""
        return TaylorFamily(self.orders, self.shifts, self.differences, self.basis, self.clip)

    def to_dict(self) -> dict[str, Any]:
        """Write the settings that results depend on, as JSON could hold them; `from_dict` reads them.

        A `probe_dtype` that is not set is left out, as in what was written before there was this setting.
        """
        found = {name: getattr(self, name) for name in DECISIVE}
        if self.probe_dtype is None:
            del found["probe_dtype"]
        return {n: str(v).removeprefix("torch.") if isinstance(v, torch.dtype) else v for n, v in found.items()}

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> TAPConfig:
        """Read what `to_dict` wrote, by way of JSON or not.

        Raises:
            TypeError, ValueError: as `of`.
        """
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
        for name in {"history_dtype", "probe_dtype"} & given.keys():
            given[name] = getattr(torch, str(given[name]))
        return cls.of(given)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> TAPConfig:
        """Make one from loose settings, naming any field that does not exist.

        Raises:
            TypeError: an unknown field, with the nearest known one.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"known fields: {', '.join(known)}"
                raise TypeError(f"TAPConfig has no field {name!r}; {hint}")
        return cls(**settings)


# Settings that results depend on: where the history is kept, for one, changes none.
DECISIVE = tuple(field.name for field in fields(TAPConfig) if field.name not in ("history_device", "num_steps"))
