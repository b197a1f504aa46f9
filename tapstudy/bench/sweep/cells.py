"""Cells of a sweep: one method with one setting on one set of images, as plain data."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any

from tapstudy.bench.conditions import Call, Condition
from tapstudy.bench.engine import Setting
from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.methods import find_method
from tapstudy.bench.results import short_hash
from tapstudy.policies.config import DECISIVE, TAPConfig

_OWN = ("method", "model", "steps", "guidance", "policy_seed", "smooth_time")
SETTINGS = (*_OWN, *DECISIVE)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Hold one method with one setting on the images of every seed with every label.

    Settings that make no difference to the method take their defaults, so that two cells that would compute the same
    are equal.

    Args:
        method: of `bench.methods`, such as "reference", "fewer" (plain steps, as many as the schedule has full ones),
            "fixed<order>" or "fixed<order>-<shift>" (one predictor), "tap", "step" (TAP, one choice per step),
            "shuffled" (TAP by the probes of other tokens), "random", "oracle", "oracle-latent" (with the residual in
            the model's output).
        model: of an `ImageSet`: embedded model, folder, hub id; with "-untrained" behind it: random weights.
        seeds: of the noise.
        labels: sampled with every seed; prompts, where the model takes them.
        steps: T.
        guidance: scale of guidance; None is the pipeline's usual one.
        policy_seed: of methods that draw at random.
        smooth_time: sigma of `tapstudy.smooth_time`, in force while the method samples; its reference is not smoothed.
        config: everything else.

    Raises:
        TypeError, ValueError: invalid settings.
    """

    method: str
    model: str = "mnist-dit"
    seeds: tuple[int, ...] = (0,)
    labels: tuple[Condition, ...] = tuple(range(10))
    steps: int = 50
    guidance: float | None = 2.0
    policy_seed: int = 0
    smooth_time: float = 0.0
    config: TAPConfig = field(default_factory=TAPConfig)

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"Cell: steps must be an integer of at least 1, got {self.steps!r}")
        object.__setattr__(self, "seeds", _indices("seeds", self.seeds))
        prompts = (
            all(isinstance(one, str | Call) for one in self.labels) and len({*self.labels}) == len(self.labels) > 0
        )
        object.__setattr__(self, "labels", tuple(self.labels) if prompts else _indices("labels", self.labels))
        for name in ("guidance", "smooth_time"):
            if getattr(self, name) is None and name == "guidance":
                continue
            object.__setattr__(self, name, float(getattr(self, name)))
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"Cell: {name} must be a finite number of at least 0, got {getattr(self, name)}")
        kind = find_method(self.method)
        if kind.policy is None and kind.fit is not None:
            raise ValueError(f"Cell: {self.method} is fitted on held-out images: `tapstudy bench frontier` runs it")
        config = kind.config(self.config)
        config = replace(config, shifts=tuple(map(_plain, config.shifts)))
        if config.granularity != "region":
            config = replace(config, region_size=TAPConfig.region_size)
        if config.full_steps is not None:
            if max(config.full_steps) >= self.steps:
                raise ValueError(f"Cell: full_steps must be below the {self.steps} steps, got {config.full_steps}")
            config = replace(config, interval=TAPConfig.interval, warmup_steps=TAPConfig.warmup_steps)
        object.__setattr__(self, "config", config)
        if not kind.draws:
            object.__setattr__(self, "policy_seed", 0)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Cell:
        """Take loose settings: the fields of a cell and of TAPConfig, those that the method does not read left out.

        Raises:
            TypeError: an unknown setting, with the nearest known one.
        """
        for name in settings:
            check_setting(name, (*SETTINGS, "seeds", "labels"))
        reads = find_method(settings["method"]).reads
        config = TAPConfig(**{name: value for name, value in settings.items() if name in reads})
        return cls(config=config, **{name: value for name, value in settings.items() if name not in DECISIVE})

    @property
    def images(self) -> ImageSet:
        """Return every seed with every label."""
        return ImageSet.of(self.model, seeds=self.seeds, labels=self.labels, steps=self.steps, guidance=self.guidance)

    @property
    def setting(self) -> Setting:
        """Tell how they are sampled."""
        setting = find_method(self.method).setting(self.config, steps=self.steps, seed=self.policy_seed)
        return setting.on_smooth_clock(self.smooth_time)

    @property
    def reference(self) -> Cell:
        """Return the cell of the same images of the model as it is, without acceleration."""
        return replace(self, method="reference", smooth_time=0.0)

    @property
    def read_settings(self) -> dict[str, Any]:
        """Return the settings that make a difference, as plain values."""
        kind, config = find_method(self.method), self.config
        names = {*kind.reads, *kind.implied} if kind.policy else {*kind.reads}
        if config.full_steps is None:
            names.discard("full_steps")
        else:
            names -= {"interval", "warmup_steps"}
        if config.granularity != "region":
            names.discard("region_size")
        own = [name for name in _OWN if name != "policy_seed" or kind.draws]
        plain = self.to_dict()
        return {name: plain[name] for name in own} | {n: v for n, v in plain["config"].items() if n in names}

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON could hold them."""
        return json.loads(json.dumps({**asdict(self), "config": self.config.to_dict()}))

    @property
    def name(self) -> str:
        """Return method and a hash of everything: the same for equal cells, on every machine."""
        return f"{self.method}-{short_hash(self.to_dict())}"

    def __str__(self) -> str:
        """Return the settings that are not TAPConfig's defaults."""
        usual = {**Cell(method="tap").to_dict()["config"], "smooth_time": 0.0}
        shown = {name: value for name, value in self.read_settings.items() if value != usual.get(name, self.method)}
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{self.method} ({settings}, seeds={list(self.seeds)}, labels={list(self.labels)})"


def product_of(axes: Mapping[str, Sequence[Any]], **common: Any) -> list[Cell]:
    """Return a cell for every combination of the values of `axes`, equal ones once.

    Args:
        axes: setting -> values.
        common: settings that all cells share.

    Raises:
        TypeError: an unknown setting.
        ValueError: an invalid value, or an axis that no method reads.
    """
    for name in axes:
        check_setting(name, SETTINGS)
    common = {"method": "tap", **common}
    cells = [Cell.of({**common, **dict(zip(axes, values, strict=True))}) for values in product(*axes.values())]
    for name in axes:
        if not any(name in cell.read_settings for cell in cells):
            methods = ", ".join(dict.fromkeys(cell.method for cell in cells))
            raise ValueError(f"the axis {name} makes no difference here: {methods} with these settings never reads it")
    return list(dict.fromkeys(cells))


def check_setting(name: str, known: Sequence[str]) -> None:
    """Raises TypeError, with the nearest one, if there is no such setting."""
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
        raise TypeError(f"no setting {name!r}; {hint}")


def _plain(number: float) -> float:
    """Return 1 for 1.0: equal settings must look equal."""
    return int(number) if float(number).is_integer() else number


def _indices(name: str, values: Any) -> tuple[int, ...]:
    found = tuple(values)
    if not found or len(set(found)) < len(found) or any(type(value) is not int or value < 0 for value in found):
        raise ValueError(f"Cell: {name} must be different integers of at least 0, and at least one, got {values!r}")
    return found
