"""Methods that are fitted to held-out images: their settings on a schedule, or at a number of full passes.

Published caches have schedules of their own, and their published settings start from other models. Here whatever forces
full steps at the beginning is set to the three of S(N, 3), and what remains, a threshold or a period, makes the number
of passes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch

from tapstudy.bench.engine import Setting
from tapstudy.bench.fit.held_out import Slot
from tapstudy.bench.fit.tuning import Tuner
from tapstudy.bench.plan import WARMUP
from tapstudy.bench.speed import third_party
from tapstudy.core.change import relative_change
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.base import ResidualSite
from tapstudy.policies.calibrated import CalibratedPolicy, best_rows
from tapstudy.policies.cg_taylor import CGTaylorPolicy
from tapstudy.policies.channel_groups import ChannelGroupsPolicy, best_members, group_channels
from tapstudy.policies.class_rows import ClassRowsPolicy, clean_tokens, fit_class_rows
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.dicache import DiCachePolicy
from tapstudy.policies.diffusers_taylor import DiffusersTaylorPolicy
from tapstudy.policies.easycache import EasyCachePolicy
from tapstudy.policies.ertacache import ERTACachePolicy, calibrate_erta
from tapstudy.policies.first_block import FirstBlockPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.magcache import MagCachePolicy, magnitude_ratios, magnitude_skips
from tapstudy.policies.margin import MarginPolicy
from tapstudy.policies.seacache import SeaCachePolicy
from tapstudy.policies.single import SinglePolicy
from tapstudy.policies.teacache import TeaCachePolicy, rescaling_coefficients
from tapstudy.policies.wiener import ShuffledWienerPolicy, WienerPolicy, clean_power
from tapstudy.policies.zeus import ZeusPolicy, zeus_skips
from tapstudy.predictors.learned import LearnedLinear

GROUPS = 8
CLASS_ROWS = [(classes, anchors) for classes in (3, 6) for anchors in (2, 3)]
FEW = 3  # trajectories for calibrations that hold all their features in memory

# Predictors


def best_fixed(slot: Slot) -> Setting:
    order, shift = slot.held_out.best_fixed(slot.config, slot.name)
    return Setting.of(FixedPolicy(order, shift, config=slot.config))


def learned(slot: Slot) -> Setting:
    gram = torch.from_numpy(slot.held_out.gram("hidden"))
    return Setting.of(SinglePolicy(LearnedLinear.fit(gram, slot.mask), slot.config))


def channel_groups(slot: Slot) -> Setting:
    features = slot.held_out.features("residual", samples=FEW)
    groups = group_channels(features, min(GROUPS, features[0].shape[-1]))
    members = best_members(features, groups, config=slot.config)
    return Setting.of(ChannelGroupsPolicy(groups, members, config=slot.config))


def step_table(slot: Slot, *, residual: ResidualSite = "hidden") -> Setting:
    """Take at every step the member of TAP's family that is best on held-out images."""
    gram = torch.from_numpy(slot.held_out.gram(residual))
    config = replace(slot.config, residual=residual)
    return Setting.of(CalibratedPolicy(best_rows(gram, slot.mask, config.family), config))


step_table_output = partial(step_table, residual="latent")


def fitted(slot: Slot) -> Setting:
    return Setting.of(slot.held_out.fitted(slot.mask, slot.name))


def margin(slot: Slot) -> Setting:
    return Setting.of(MarginPolicy(slot.config, default=slot.held_out.best_fixed(slot.config, slot.name)))


def adaptive_tap(slot: Slot) -> Setting:
    config = TAPConfig(interval=max(2 * slot.config.interval, 2))

    def make(threshold: float) -> Setting:
        return Setting.of(AdaptiveTAPPolicy(threshold, config))

    return make(slot.threshold(f"adaptive-tap-{config.interval}", make, low=1e-7))


def class_rows(slot: Slot, *, shuffled: int | None = None) -> Setting:
    """Take rows for classes of tokens, with the number of classes and anchors that is best on the tuning images."""
    held = slot.held_out
    latents, residuals = (held.features(name) for name in ("latent", "latent_residual"))
    sigmas = held.recording["sigma"].values.tolist()

    def make(choice: tuple[int, int], seed: int | None = None) -> Setting:
        rows, centres = fit_class_rows(latents, residuals, sigmas, slot.mask, classes=choice[0], num_anchors=choice[1])
        return Setting.of(ClassRowsPolicy(rows, centres, sigmas, slot.config, shuffled=seed))

    found = held.choose(
        f"class-rows-{slot.name}", lambda: {f"{classes} {anchors}": make((classes, anchors))
                                            for classes, anchors in CLASS_ROWS}
    )  # fmt: skip
    classes, anchors = map(int, found.split())
    return make((classes, anchors), shuffled)


def wiener(slot: Slot, *, shuffled: bool = False) -> Setting:
    """Take TAP with a probe that is filtered by the spectrum of held-out images."""
    held = slot.held_out
    sigmas = held.recording["sigma"].values.tolist()
    latent, residual = (held.features(name)[-1] for name in ("latent", "latent_residual"))
    rows, columns = (int(held.recording[name].max()) + 1 for name in ("row", "col"))
    power = clean_power(clean_tokens(latent, residual, sigmas[-1]), (rows, columns))
    policy = ShuffledWienerPolicy if shuffled else WienerPolicy
    return Setting.of(policy(power, sigmas, slot.config))


wiener_shuffled = partial(wiener, shuffled=True)
class_rows_shuffled = partial(class_rows, shuffled=0)


# Published caches


def teacache(slot: Slot) -> Setting:
    probe, residual, latent = (slot.held_out.features(name) for name in ("probe", "latent_residual", "latent"))
    output = [r + x for r, x in zip(residual, latent, strict=True)]
    contexts = slot.held_out.recording.sizes["context"]

    def changes(path: list[torch.Tensor]) -> torch.Tensor:
        """Return (image, step), both branches of an image together, as they are in a batch."""
        images = [step.unflatten(0, (-1, contexts)) for step in path]
        return torch.tensor([
            [float(relative_change(now[i], before[i])) for before, now in pairwise(images)]
            for i in range(len(images[0]))
        ])  # fmt: skip

    degree = min(4, slot.steps // 4)
    coefficients = rescaling_coefficients(changes(probe), changes(output), degree=degree)

    def make(threshold: float) -> Setting:
        return Setting.of(TeaCachePolicy(threshold, coefficients=coefficients))

    return make(slot.threshold("teacache", make))


def first_block(slot: Slot) -> Setting:
    return Setting.of(FirstBlockPolicy(_first_block_threshold(slot)))


def _first_block_threshold(slot: Slot) -> float:
    return slot.threshold("first-block", lambda threshold: Setting.of(FirstBlockPolicy(threshold)))


def dicache(slot: Slot) -> Setting:
    def make(threshold: float) -> Setting:
        return Setting.of(DiCachePolicy(threshold, retention=(WARMUP - 1) / slot.steps))

    return make(slot.threshold("dicache", make))


def easycache(slot: Slot) -> Setting:
    def make(threshold: float) -> Setting:
        return Setting.of(EasyCachePolicy(threshold, warmup_steps=WARMUP))

    return make(slot.threshold("easycache", make))


def seacache(slot: Slot) -> Setting:
    sigmas = slot.held_out.recording["sigma"].values.tolist()

    def make(threshold: float) -> Setting:
        return Setting.of(SeaCachePolicy(sigmas, threshold, max_skips=None, warmup_steps=WARMUP))

    return make(slot.threshold("seacache", make))


def cg_taylor(slot: Slot) -> Setting:
    def make(threshold: float) -> Setting:
        return Setting.of(CGTaylorPolicy(threshold, always_full=WARMUP - 1))

    return make(slot.threshold("cg-taylor", make))


def _magcache(slot: Slot) -> tuple[tuple[float, ...], float, dict[str, float]]:
    """Return ratios, threshold, and the limits that do not bind."""
    ratios, steps = magnitude_ratios(slot.held_out.features("residual")), slot.steps
    limits = {"max_skips": steps, "retention": WARMUP / steps}

    def count(threshold: float) -> float:
        return steps - len(magnitude_skips(ratios, threshold, max_skips=steps, retention=limits["retention"]))

    return ratios, Tuner(count, trials=40, tolerance=0).threshold(slot.passes), limits


def magcache(slot: Slot) -> Setting:
    ratios, threshold, limits = _magcache(slot)
    return Setting.of(
        MagCachePolicy(ratios, threshold=threshold, max_skips=int(limits["max_skips"]), retention=limits["retention"])
    )


def ertacache(slot: Slot) -> Setting:
    """Leave out the shorter steps of the method, which change the sampler: what is compared is the same solver."""
    inputs, residuals = slot.held_out.features("latent"), slot.held_out.features("latent_residual")
    outputs = [r + x for r, x in zip(residuals, inputs, strict=True)]

    def count(threshold: float) -> float:
        return len(calibrate_erta(inputs, outputs, threshold).full_steps)

    threshold = Tuner(count, trials=20, tolerance=0).threshold(slot.passes)
    return Setting.of(ERTACachePolicy(calibrate_erta(inputs, outputs, threshold)))


def zeus(slot: Slot) -> Setting:
    """Take the published rules from the warm-up to the last step, with the period that gives the passes."""
    steps = slot.steps
    start, end = WARMUP - 1, steps - 1

    def count(period: int) -> int:
        modular = range(1, period)
        return steps - len(zeus_skips(denominator=period, modular=modular, start=start, end=end, max_skips=period))

    period = min(range(2, steps), key=lambda p: abs(count(p) - slot.passes))
    modular = tuple(range(1, period))
    return Setting.of(ZeusPolicy(denominator=period, modular=modular, start=start, end=end, max_skips=period))


def diffusers_taylor(slot: Slot) -> Setting:
    return Setting.of(DiffusersTaylorPolicy(1, interval=_diffusers_interval(slot.steps, slot.passes)))


def _diffusers_interval(steps: int, passes: int) -> int:
    """Return the interval with which diffusers' schedule makes about so many full passes."""

    def count(interval: int) -> int:
        policy = DiffusersTaylorPolicy(1, interval=interval)
        return sum(policy.wants_full(step) for step in range(steps))

    return min(range(1, steps), key=lambda interval: abs(count(interval) - passes))


# name -> title, fit
CACHES: dict[str, tuple[str, Callable[[Slot], Setting]]] = {
    "diffusers-taylor": ("Taylor order 1 as in diffusers", diffusers_taylor),
    "teacache": ("TeaCache", teacache),
    "first-block": ("First-Block Cache", first_block),
    "magcache": ("MagCache", magcache),
    "dicache": ("DiCache", dicache),
    "easycache": ("EasyCache", easycache),
    "seacache": ("SeaCache", seacache),
    "cg-taylor": ("CG-Taylor", cg_taylor),
    "zeus": ("ZEUS", zeus),
    "ertacache": ("ERTACache", ertacache),
}


# Other people's code


def _their_first_block(slot: Slot) -> Setting:
    threshold = _first_block_threshold(slot)
    return Setting.third_party(
        lambda pipe: third_party.first_block_cache(pipe, threshold),
        f"diffusers FirstBlockCache(threshold={threshold})",
    )


def _their_magcache(slot: Slot) -> Setting:
    ratios, threshold, limits = _magcache(slot)
    steps, most, retention = slot.steps, int(limits["max_skips"]), limits["retention"]
    return Setting.third_party(
        lambda pipe: third_party.mag_cache(
            pipe, ratios, num_steps=steps, threshold=threshold, max_skips=most, retention=retention
        ),
        f"diffusers MagCache(threshold={threshold}, max_skips={most}, retention={retention}, ratios={ratios})",
    )


def _their_taylorseer(slot: Slot) -> Setting:
    interval = _diffusers_interval(slot.steps, slot.passes)
    return Setting.third_party(
        lambda pipe: third_party.taylorseer_cache(pipe, interval=interval), f"diffusers TaylorSeer(interval={interval})"
    )


def _their_dbcache(slot: Slot, order: int | None = None) -> Setting:
    def make(threshold: float) -> Setting:
        settings = {"Fn_compute_blocks": 1, "max_warmup_steps": 3, "residual_diff_threshold": threshold}
        return Setting.third_party(
            lambda pipe: third_party.dbcache(pipe, taylor_order=order, **settings),
            f"cache-dit DBCache({settings}, taylor_order={order})",
        )

    return make(slot.threshold("dbcache" if order is None else f"dbcache-taylor{order}", make))


THIRD_PARTY: dict[str, Callable[[Slot], Setting]] = {
    "peer-first-block": _their_first_block,
    "peer-magcache": _their_magcache,
    "peer-taylorseer": _their_taylorseer,
    "peer-dbcache": _their_dbcache,
    "peer-dbcache-taylor": partial(_their_dbcache, order=1),
}
