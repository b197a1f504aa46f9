"""The table of methods: how each is made, which settings it reads, and what it is called in figures."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tapstudy.bench.engine import Setting, step_flops
from tapstudy.bench.fit import calibrated, partial
from tapstudy.bench.fit.held_out import SCHEDULES, USUAL, Slot
from tapstudy.bench.flops import StepFlops
from tapstudy.bench.image_set import ImageSet
from tapstudy.bench.plan import WARMUP
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.policies.base import Policy
from tapstudy.policies.blended import BlendedPolicy
from tapstudy.policies.blocks.dbcache import DBCachePolicy
from tapstudy.policies.blocks.delta_dit import DeltaDiTPolicy
from tapstudy.policies.blocks.modules import ModulesPolicy
from tapstudy.policies.blocks.pab import PABPolicy
from tapstudy.policies.blocks.temporal_delta import TemporalDeltaPolicy
from tapstudy.policies.config import DECISIVE, TAPConfig
from tapstudy.policies.drift import DriftPolicy
from tapstudy.policies.first_window import FirstWindowPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.nonlinear import NonlinearPolicy, NonlinearTAPPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.ridge import RidgePolicy
from tapstudy.policies.several_depths import SeveralDepthsPolicy
from tapstudy.policies.shuffled import ShuffledPolicy
from tapstudy.policies.single import SinglePolicy
from tapstudy.policies.smoothed import SmoothedPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.policies.tokens.hsa import HSAPolicy
from tapstudy.policies.tokens.ras import RASPolicy
from tapstudy.policies.tokens.tap_tokens import TAPTokensPolicy
from tapstudy.policies.tokens.toca import ToCaPolicy
from tapstudy.predictors.adams_bashforth import AdamsBashforth
from tapstudy.predictors.chebyshev import Chebyshev
from tapstudy.predictors.dmd import DynamicModes
from tapstudy.predictors.family import Family
from tapstudy.predictors.foca import FoCa
from tapstudy.predictors.frequency import FrequencySplit
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.least_squares import LeastSquares
from tapstudy.predictors.nonlinear import NonlinearPredictor
from tapstudy.predictors.pade import Pade
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.token_least_squares import TokenLeastSquares
from tapstudy.predictors.union import Union

Kind = Literal["control", "fixed", "cache", "tap", "beyond", "peer"]
OWN = "own"  # a schedule that the method brings along
SEARCHED = "searched"  # a schedule found for one method, see `HeldOut.searched_mask`
FURTHER = (USUAL, "start-dense", "window-fitted-hidden")

# settings of TAPConfig that methods read
SCHEDULE = ("interval", "warmup_steps", "cooldown_steps", "full_steps")
GRANULARITY = ("granularity", "region_size")
PROBE = ("distance", "probe_depth", "probe_dtype")
FAMILY = ("orders", "shifts", "differences", "basis", "clip")
CACHE = tuple(name for name in DECISIVE if name not in (*GRANULARITY, *PROBE, *FAMILY))  # schedule, history, residual


def _all_but(*names: str) -> tuple[str, ...]:
    return tuple(name for name in DECISIVE if name not in names)


@dataclass(frozen=True)
class Method:
    """Hold a row of the table.

    Attributes:
        name: unique.
        kind: "control"; "fixed" (one predictor for all tokens); "cache" (published, with rules of their own); "tap";
            "beyond" (the paper); "peer" (other people's code).
        policy: made from a configuration and a seed; None: plain sampling, or a method that must be fitted.
        reads: settings of TAPConfig that make a difference to it; the others count as not set.
        implied: settings that its name stands for.
        draws: whether the seed makes a difference.
        alone: samples of a batch mix, so every image is sampled by itself.
        fit: its setting on a schedule, from held-out images; None: that of `policy`.
        schedules: what the comparison runs it on; none: it takes no part there.
        title: in figures and tables, if not its name.
        partial: steps that are not full may run some of the model, and not all the same.
        lacks: why it cannot run on the model of that name; nothing where it can.
    """

    name: str
    kind: Kind
    policy: Callable[[TAPConfig, int], Policy] | None = None
    reads: tuple[str, ...] = ()
    implied: Mapping[str, Any] = field(default_factory=dict)
    draws: bool = False
    alone: bool = False
    fit: Callable[[Slot], Setting] | None = None
    schedules: tuple[str, ...] = ()
    title: str = ""
    partial: bool = False
    lacks: Callable[[str], str] = lambda model: ""

    def config(self, config: TAPConfig) -> TAPConfig:
        """Reset the settings that the method does not read to their defaults, and set those that it implies."""
        return TAPConfig(**{**{name: getattr(config, name) for name in self.reads}, **self.implied})

    def setting(self, config: TAPConfig, *, steps: int, seed: int = 0) -> Setting:
        """Tell how it samples with a configuration.

        Args:
            config: as `config` gives it.
            steps: of the images.
            seed: of methods that draw at random.

        Raises:
            ValueError: it has to be fitted on held-out images first.
        """
        if self.policy is not None:
            return Setting.of(self.policy(config, seed), alone=self.alone or None)
        if self.fit is not None:
            raise ValueError(f"{self.name} is fitted on held-out images: run it with `tapstudy bench frontier`")
        return Setting.plain(len(config.schedule.steps(steps)) if self.reads else steps)

    def flops(self, pipe: Any, image: ImageSet, config: TAPConfig) -> StepFlops:
        """Count what a full and a skip step of one image cost; the same for all schedules, but for partial steps."""
        if self.partial:
            assert self.policy is not None
            return step_flops(pipe, image, Setting.of(self.policy(config, 0)))
        filled = replace(  # full steps that fill the history, and then none
            config, full_steps=None, warmup_steps=config.family.num_anchors, interval=1000, cooldown_steps=0
        )
        if isinstance(pipe, EmbeddedPipeline):  # which runs every step that it is told
            image = replace(image, steps=config.family.num_anchors + 1)
        return step_flops(
            pipe, image, Setting.of(self.policy(filled, 0)) if self.policy else Setting.plain(image.steps)
        )

    def on(self, slot: Slot) -> Setting:
        """Tell how the comparison runs it."""
        if self.fit is not None:
            return self.fit(slot)
        if self.policy is None:
            return Setting.plain(slot.passes)
        return self.setting(replace(slot.config, **self.implied), steps=slot.held_out.plan.steps)


def fixed(order: int, shift: float = 0, *, name: str = "", **more: Any) -> Method:
    """Return one predictor of TAP's family for all tokens; `more` for the table."""
    return Method(
        name or f"fixed{order}-{shift:g}",
        "fixed",
        lambda config, _: FixedPolicy(order, shift, config=config),
        _all_but(*GRANULARITY, *PROBE, "orders", "shifts"),
        {"orders": (order,), "shifts": (shift,)},
        **more,
    )


def _on_output(name: str, residual: str) -> Method:
    """Order 1 of another residual."""
    plain = fixed(1)
    return Method(
        name, "fixed", plain.policy, tuple(setting for setting in plain.reads if setting != "residual"),
        {**plain.implied, "residual": residual}, schedules=(USUAL,),
    )  # fmt: skip


def _single(name: str, family: Family) -> Method:
    """Return one predictor of another family."""
    return Method(name, "fixed", lambda config, _: SinglePolicy(family, config), CACHE, schedules=(USUAL,))


def _nonlinear(name: str, predictor: NonlinearPredictor) -> Method:
    return Method(name, "fixed", lambda config, _: NonlinearPolicy(predictor, config), CACHE, schedules=(USUAL,))


def _tap(name: str, *schedules: str, alone: bool = False, granularity: str | None = None, title: str = "") -> Method:
    if granularity is None:
        return Method(name, "tap", lambda config, _: TAPPolicy(config), _all_but(), schedules=schedules, title=title)
    reads = _all_but(*(GRANULARITY if granularity != "region" else GRANULARITY[:1]))
    implied = {"granularity": granularity}
    return Method(
        name, "tap", lambda config, _: TAPPolicy(config), reads, implied, alone=alone, schedules=schedules, title=title
    )


def _beyond(name: str, policy: Callable[[TAPConfig], Policy], *schedules: str, title: str = "") -> Method:
    return Method(name, "beyond", lambda config, _: policy(config), _all_but(), schedules=schedules, title=title)


def _with(name: str, family: Family) -> Method:
    """Return TAP that chooses among another family, too."""
    return _beyond(f"tap+{name}", lambda config: TAPPolicy(config, family=Union(TaylorFamily(), family)))


def _partial(
    name: str,
    policy: Callable[[TAPConfig], Policy],
    reads: tuple[str, ...] = SCHEDULE,
    kind: Kind = "cache",
    *,
    title: str = "",
) -> Method:
    """Return a method that runs some of the model between full steps, on a schedule that it is given or its own."""
    fit = partial.PARTIAL.get(name)
    schedules = (OWN if fit else USUAL,)
    return Method(
        name, kind, lambda config, _: policy(config), reads, fit=fit, schedules=schedules, partial=True, title=title
    )


def _fitted(name: str, kind: Kind, fit: Callable[[Slot], Setting], *schedules: str, title: str = "") -> Method:
    return Method(name, kind, fit=fit, schedules=schedules, title=title)


ROWS = (
    Method("reference", "control"),
    # plain sampling with as many steps as the schedule has full ones
    Method("fewer", "control", None, SCHEDULE, {"orders": (0,)}, schedules=(OWN,), title="fewer steps"),
    fixed(0, name="order0", schedules=(USUAL, "lemica"), title="FORA (order 0)"),
    fixed(1, name="order1", schedules=(*SCHEDULES, SEARCHED), title="Taylor order 1"),
    fixed(2, name="order2", schedules=(USUAL,), title="Taylor order 2"),
    _fitted("best-fixed", "fixed", calibrated.best_fixed, *SCHEDULES, title="best fixed predictor"),
    _on_output("order1-tail", "tail"),
    _on_output("order1-output", "output"),
    Method("newton2", "fixed", lambda config, _: FixedPolicy(2, config=config),
           _all_but(*GRANULARITY, *PROBE, "orders", "shifts", "differences", "basis"),
           {"orders": (2,), "shifts": (0,), "differences": "divided", "basis": "newton"}, schedules=(USUAL,)),
    _single("hermite", HermiteFamily()),
    _single("adams-bashforth", AdamsBashforth()),
    _single("foca", FoCa()),
    _single("chebyshev", Chebyshev()),
    _fitted("learned", "fixed", calibrated.learned, USUAL),
    _nonlinear("dmd", DynamicModes()),
    _nonlinear("token-least-squares", TokenLeastSquares()),
    _nonlinear("freqca", FrequencySplit()),
    _nonlinear("pade", Pade()),
    *(_fitted(name, "cache", fit, OWN, title=title) for name, (title, fit) in calibrated.CACHES.items()),
    _fitted("channel-groups", "cache", calibrated.channel_groups, USUAL),
    _partial("fora-modules", lambda config: ModulesPolicy(0, config)),
    _partial("taylor-modules", lambda config: ModulesPolicy(1, config)),
    _partial("taylor2-modules", lambda config: ModulesPolicy(2, config)),
    _partial("delta-dit", DeltaDiTPolicy, title="Delta-DiT"),
    _partial("pab", lambda config: PABPolicy(), (), title="PAB"),
    _partial("dbcache", lambda config: DBCachePolicy(first=1, last=1, warmup_steps=WARMUP), (), title="DBCache"),
    _partial("temporal-delta", lambda config: TemporalDeltaPolicy(), (), title="temporal delta, blocks"),
    _fitted("bac", "cache", partial.bac, OWN, title="BAC"),
    _fitted("profiling", "cache", partial.profiling, OWN, title="ProfilingDiT"),
    _fitted("profiling-foreground", "control", functools.partial(partial.profiling, foreground=True), OWN,
            title="ProfilingDiT, foreground left out"),
    Method("model-switch", "cache", fit=partial.model_switch, schedules=(OWN,), lacks=partial.no_small_model,
           title="switch to a small model"),
    _fitted("router", "cache", partial.router, OWN, title="router, learned"),
    _fitted("router-random", "control", partial.router_random, OWN, title="router, random table"),
    _partial("toca", lambda config: ToCaPolicy(config=config), title="ToCa"),
    _partial("duca", lambda config: ToCaPolicy(config=config, every=2), title="DuCa"),
    _partial("ras", lambda config: RASPolicy(), (), title="RAS"),
    _partial("hsa", lambda config: HSAPolicy(), (), title="HSA"),
    _tap("tap", *SCHEDULES, SEARCHED, title="TAP"),
    _tap("region", USUAL, granularity="region"),
    _tap("step", *SCHEDULES, SEARCHED, granularity="step", title="TAP, one choice per step"),
    _tap("global", USUAL, granularity="global", alone=True),
    _fitted("margin", "beyond", calibrated.margin, *FURTHER),
    _beyond("smoothed", SmoothedPolicy, *FURTHER),
    _beyond("blended", BlendedPolicy, *FURTHER),
    _beyond("ridge", RidgePolicy, *FURTHER),
    _fitted("adaptive-tap", "beyond", calibrated.adaptive_tap, OWN),
    _beyond("drift", DriftPolicy, *FURTHER, title="TAP that minimises drift"),
    _beyond("two-depths", SeveralDepthsPolicy, *FURTHER),
    _beyond("first-window", lambda config: FirstWindowPolicy(1, config=config)),
    _with("least-squares", LeastSquares()),
    _with("hermite", HermiteFamily(orders=(1, 2))),
    _with("chebyshev", Chebyshev()),
    _beyond("tap+dmd", lambda config: NonlinearTAPPolicy((DynamicModes(),), config)),
    _partial("tap+tokens", lambda config: TAPTokensPolicy(config=config), _all_but(*GRANULARITY), "beyond",
             title="TAP that runs the tokens its probe calls worst"),
    _partial("tap+tokens-error", lambda config: TAPTokensPolicy(config=config, names="error"), _all_but(*GRANULARITY),
             "beyond", title="TAP that runs the tokens worst at the last full step"),
    _partial("tap+tokens-random", lambda config: TAPTokensPolicy(config=config, names="random"),
             _all_but(*GRANULARITY), "control", title="TAP that runs random tokens"),
    _fitted("step-table", "beyond", calibrated.step_table, USUAL, title="one predictor per step, no probe"),
    _fitted("step-table-output", "beyond", calibrated.step_table_output),
    _fitted("fitted", "beyond", calibrated.fitted, *SCHEDULES, title="predictors fitted to recordings"),
    _fitted("class-rows", "beyond", calibrated.class_rows, "start-dense"),
    _fitted("class-rows-shuffled", "beyond", calibrated.class_rows_shuffled, "start-dense"),
    _fitted("wiener", "beyond", calibrated.wiener, "start-dense"),
    _fitted("wiener-shuffled", "beyond", calibrated.wiener_shuffled, "start-dense"),
    Method("oracle", "control", lambda config, _: OraclePolicy(config), _all_but(*PROBE), schedules=(USUAL,),
           title="oracle: the truth chooses for every token"),
    Method("oracle-latent", "control", lambda config, _: OraclePolicy(config), _all_but(*PROBE, "residual"),
           {"residual": "latent"}),
    Method("random", "control", lambda config, seed: RandomPolicy(config, seed=seed), _all_but(*GRANULARITY, *PROBE),
           draws=True, schedules=(USUAL,)),
    Method("shuffled", "control", lambda config, seed: ShuffledPolicy(config, seed=seed), _all_but(), draws=True,
           schedules=(USUAL,), title="TAP by the probes of other tokens"),
    *(_fitted(name, "peer", fit, OWN) for name, fit in calibrated.THIRD_PARTY.items()),
)  # fmt: skip
METHODS = {method.name: method for method in ROWS}
FIXED = re.compile(r"fixed(\d+)(?:-(\d+(?:\.\d+)?))?")
# run at every number of passes; the others at the fewest only, unless all is asked for
CORE = frozenset({
    "fewer", "order0", "order1", "order2", "best-fixed", "hermite", "learned", "diffusers-taylor", "teacache",
    "first-block", "magcache", "dicache", "cg-taylor", "zeus", "ertacache", "tap", "step", "adaptive-tap", "fitted",
    "peer-dbcache", "peer-dbcache-taylor",
})  # fmt: skip


def find_method(name: str) -> Method:
    """Return the method of that name; "fixed2-1" is the predictor of order 2 and shift 1.

    Raises:
        ValueError: no such method, with the nearest one.
    """
    if name in METHODS:
        return METHODS[name]
    if isinstance(name, str) and (found := FIXED.fullmatch(name)):
        return fixed(int(found[1]), float(found[2] or 0), name=name)
    near = difflib.get_close_matches(str(name), [*METHODS, "fixed0", "fixed1", "fixed2"], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no method {name!r}; {hint}There are {', '.join(METHODS)}, and fixed<order> and fixed<order>-<shift>"
    )


def compared_methods(names: Sequence[str] = ()) -> list[Method]:
    """Return those that the comparison runs, in the order of the table; all if there are no names.

    Raises:
        ValueError: an unknown name.
    """
    known = [method for method in ROWS if method.schedules]
    if unknown := [name for name in names if name not in {method.name for method in known}]:
        raise ValueError(f"no method {', '.join(unknown)}: there are {', '.join(method.name for method in known)}")
    return [method for method in known if not names or method.name in names]
