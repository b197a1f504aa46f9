"""Published caches with schedules of their own, at a given number of full passes.

Their published settings start from other models. Here whatever forces full steps at the beginning is set to the three
of S(N, 3), and what remains, a threshold or a period, makes the number of passes, on held-out images.
"""

from __future__ import annotations

from itertools import pairwise

import torch

from tapstudy.bench import peers
from tapstudy.bench.frontier_held_out import HeldOut
from tapstudy.bench.frontier_plan import WARMUP, Setting
from tapstudy.bench.frontier_tuning import Tuner
from tapstudy.core.change import relative_change
from tapstudy.policies.cg_taylor import CGTaylorPolicy
from tapstudy.policies.channel_groups import ChannelGroupsPolicy, best_members, group_channels
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.dicache import DiCachePolicy
from tapstudy.policies.diffusers_taylor import DiffusersTaylorPolicy
from tapstudy.policies.ertacache import ERTACachePolicy, calibrate_erta
from tapstudy.policies.first_block import FirstBlockPolicy
from tapstudy.policies.magcache import MagCachePolicy, magnitude_ratios, magnitude_skips
from tapstudy.policies.teacache import TeaCachePolicy, rescaling_coefficients
from tapstudy.policies.zeus import ZeusPolicy, zeus_skips

GROUPS = 8
FEW = 3  # trajectories for calibrations that hold all their features in memory


def teacache(held: HeldOut, passes: int) -> Setting:
    probe, residual, latent = (held.features(name) for name in ("probe", "latent_residual", "latent"))
    output = [r + x for r, x in zip(residual, latent, strict=True)]
    contexts = held.recording.sizes["context"]

    def changes(path: list[torch.Tensor]) -> torch.Tensor:
        """(image, step), both branches of an image together, as they are in a batch."""
        images = [step.unflatten(0, (-1, contexts)) for step in path]
        return torch.tensor([
            [relative_change(now[i], before[i]) for before, now in pairwise(images)]
            for i in range(len(images[0]))
        ])  # fmt: skip

    degree = min(4, held.plan.steps // 4)
    coefficients = rescaling_coefficients(changes(probe), changes(output), degree=degree)

    def make(threshold: float) -> Setting:
        return Setting.of(TeaCachePolicy(threshold, coefficients=coefficients))

    return make(held.threshold("teacache", make, passes))


def first_block(held: HeldOut, passes: int) -> Setting:
    return Setting.of(FirstBlockPolicy(first_block_threshold(held, passes)))


def first_block_threshold(held: HeldOut, passes: int) -> float:
    return held.threshold("first-block", lambda threshold: Setting.of(FirstBlockPolicy(threshold)), passes)


def dicache(held: HeldOut, passes: int) -> Setting:
    def make(threshold: float) -> Setting:
        return Setting.of(DiCachePolicy(threshold, retention=(WARMUP - 1) / held.plan.steps))

    return make(held.threshold("dicache", make, passes))


def cg_taylor(held: HeldOut, passes: int) -> Setting:
    def make(threshold: float) -> Setting:
        return Setting.of(CGTaylorPolicy(threshold, always_full=WARMUP - 1))

    return make(held.threshold("cg-taylor", make, passes))


def _magcache(held: HeldOut, passes: int) -> tuple[tuple[float, ...], float, dict[str, float]]:
    """Ratios, threshold, and the limits that do not bind."""
    ratios, steps = magnitude_ratios(held.features("residual")), held.plan.steps
    limits = {"max_skips": steps, "retention": WARMUP / steps}

    def count(threshold: float) -> float:
        return steps - len(magnitude_skips(ratios, threshold, max_skips=steps, retention=limits["retention"]))

    return ratios, Tuner(count, trials=40, tolerance=0).threshold(passes), limits


def magcache(held: HeldOut, passes: int) -> Setting:
    ratios, threshold, limits = _magcache(held, passes)
    return Setting.of(
        MagCachePolicy(ratios, threshold=threshold, max_skips=int(limits["max_skips"]), retention=limits["retention"])
    )


def peer_magcache(held: HeldOut, passes: int) -> Setting:
    ratios, threshold, limits = _magcache(held, passes)
    steps, most, retention = held.plan.steps, int(limits["max_skips"]), limits["retention"]
    return Setting.peer(
        lambda pipe: peers.mag_cache(
            pipe, ratios, num_steps=steps, threshold=threshold, max_skips=most, retention=retention
        ),
        f"diffusers MagCache(threshold={threshold}, max_skips={most}, retention={retention}, ratios={ratios})",
    )


def ertacache(held: HeldOut, passes: int) -> Setting:
    """Without the shorter steps of the method, which change the sampler: what is compared is the same solver."""
    inputs, residuals = held.features("latent"), held.features("latent_residual")
    outputs = [r + x for r, x in zip(residuals, inputs, strict=True)]

    def count(threshold: float) -> float:
        return len(calibrate_erta(inputs, outputs, threshold).full_steps)

    threshold = Tuner(count, trials=20, tolerance=0).threshold(passes)
    return Setting.of(ERTACachePolicy(calibrate_erta(inputs, outputs, threshold)))


def zeus(held: HeldOut, passes: int) -> Setting:
    """Published rules from the warm-up to the last step, with the period that gives the passes."""
    steps = held.plan.steps

    start, end = WARMUP - 1, steps - 1

    def count(period: int) -> int:
        modular = range(1, period)
        return steps - len(zeus_skips(denominator=period, modular=modular, start=start, end=end, max_skips=period))

    period = min(range(2, steps), key=lambda p: abs(count(p) - passes))
    modular = tuple(range(1, period))
    return Setting.of(ZeusPolicy(denominator=period, modular=modular, start=start, end=end, max_skips=period))


def diffusers_taylor(held: HeldOut, passes: int) -> Setting:
    return Setting.of(DiffusersTaylorPolicy(1, interval=diffusers_interval(held.plan.steps, passes)))


def diffusers_interval(steps: int, passes: int) -> int:
    """The interval with which diffusers' schedule makes about so many full passes."""

    def count(interval: int) -> int:
        policy = DiffusersTaylorPolicy(1, interval=interval)
        return sum(policy.wants_full(step) for step in range(steps))

    return min(range(1, steps), key=lambda interval: abs(count(interval) - passes))


def channel_groups(held: HeldOut, config: TAPConfig) -> Setting:
    features = held.features("residual", samples=FEW)
    groups = group_channels(features, min(GROUPS, features[0].shape[-1]))
    return Setting.of(ChannelGroupsPolicy(groups, best_members(features, groups, config=config), config=config))
