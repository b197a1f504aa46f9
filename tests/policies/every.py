"""One of every policy, and of every option that changes its arithmetic, with ten steps that skip some."""

from __future__ import annotations

from dataclasses import replace

import torch

from tapstudy import TAPConfig
from tapstudy.policies.adaptive import AdaptiveTAPPolicy
from tapstudy.policies.blended import BlendedPolicy
from tapstudy.policies.blocks.bac import ModuleTablePolicy, SimilarityPolicy
from tapstudy.policies.blocks.dbcache import DBCachePolicy
from tapstudy.policies.blocks.delta_dit import DeltaDiTPolicy
from tapstudy.policies.blocks.groups import GroupsPolicy
from tapstudy.policies.blocks.modules import ModulesPolicy
from tapstudy.policies.blocks.pab import PABPolicy
from tapstudy.policies.blocks.temporal_delta import TemporalDeltaPolicy
from tapstudy.policies.calibrated import CalibratedPolicy
from tapstudy.policies.cg_taylor import CGTaylorPolicy
from tapstudy.policies.channel_groups import ChannelGroupsPolicy
from tapstudy.policies.class_rows import ClassRowsPolicy
from tapstudy.policies.decision import Part
from tapstudy.policies.dicache import DiCachePolicy
from tapstudy.policies.diffusers_taylor import DiffusersTaylorPolicy
from tapstudy.policies.drift import DriftPolicy
from tapstudy.policies.easycache import EasyCachePolicy
from tapstudy.policies.ertacache import ERTACachePolicy, ErtaCalibration
from tapstudy.policies.first_block import FirstBlockPolicy
from tapstudy.policies.first_window import FirstWindowPolicy
from tapstudy.policies.fixed import FixedPolicy
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.magcache import MagCachePolicy
from tapstudy.policies.margin import MarginPolicy
from tapstudy.policies.model_switch import ModelSwitchPolicy
from tapstudy.policies.nonlinear import NonlinearPolicy, NonlinearTAPPolicy
from tapstudy.policies.oracle import OraclePolicy
from tapstudy.policies.random import RandomPolicy
from tapstudy.policies.ridge import RidgePolicy
from tapstudy.policies.seacache import SeaCachePolicy
from tapstudy.policies.several_depths import SeveralDepthsPolicy
from tapstudy.policies.shuffled import ShuffledPolicy
from tapstudy.policies.single import SinglePolicy
from tapstudy.policies.smoothed import SmoothedPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.policies.teacache import TeaCachePolicy
from tapstudy.policies.tokens.hsa import HSAPolicy
from tapstudy.policies.tokens.ras import RASPolicy
from tapstudy.policies.tokens.tap_tokens import TAPTokensPolicy
from tapstudy.policies.tokens.toca import ToCaPolicy
from tapstudy.policies.wiener import ShuffledWienerPolicy, WienerPolicy
from tapstudy.policies.zeus import ZeusPolicy
from tapstudy.predictors.dmd import DynamicModes
from tapstudy.predictors.frequency import FrequencySplit
from tapstudy.predictors.hermite import HermiteFamily
from tapstudy.predictors.pade import Pade, TCPade
from tapstudy.predictors.taylor import TaylorFamily
from tapstudy.predictors.token_least_squares import TokenLeastSquares
from tapstudy.predictors.union import Union
from tests.instrument.tiny_models import make

STEPS = 10
CONFIG = TAPConfig(interval=4, warmup_steps=3)
SKIPS = (3, 4, 5, 7, 8, 9)
NONLINEAR = (DynamicModes(least=3), TokenLeastSquares(), Pade(), FrequencySplit(cutoff=0.3))
ERTA = ErtaCalibration(
    frozenset({0, 1, 2, 6}), dict.fromkeys(SKIPS, (0.1, -0.1)), dict.fromkeys(SKIPS, 1.0)
)  # fmt: skip


def _tap(**settings):
    return TAPPolicy(replace(CONFIG, **settings))


def every_policy(channels):
    """Name -> policy, for hidden states of so many channels, on a grid of 4 x 6 tokens."""
    spectrum = torch.linspace(2.0, 0.1, 24 * channels).reshape(4, 6, channels), [0.5] * STEPS
    return {
        "tap": _tap(),
        "tap l2": _tap(distance="l2"),
        "tap l1": _tap(distance="l1"),
        "tap region": _tap(granularity="region"),
        "tap step": _tap(granularity="step"),
        "tap global": _tap(granularity="global"),
        "tap latent": _tap(residual="latent"),
        "tap deep": _tap(probe_depth=1),
        "tap narrow": _tap(history_dtype=torch.bfloat16, probe_dtype=torch.bfloat16),
        "tap on the host": _tap(history_device="cpu"),
        "tap union": TAPPolicy(CONFIG, family=Union(TaylorFamily(), HermiteFamily())),
        "adaptive": AdaptiveTAPPolicy(0.5, CONFIG),
        "blended": BlendedPolicy(CONFIG),
        "calibrated": CalibratedPolicy(dict.fromkeys(SKIPS, (1.2, -0.2))),
        "class rows": ClassRowsPolicy(
            dict.fromkeys(SKIPS, ((1.2, -0.2), (1.0,))),
            torch.tensor([[-1.0] * channels, [1.0] * channels]),
            [0.5] * STEPS,
        ),
        "cg taylor": CGTaylorPolicy(10.0, always_full=2),
        "channel groups": ChannelGroupsPolicy(torch.arange(channels) % 2, (0, 5), config=CONFIG),
        "dicache": DiCachePolicy(0.5),
        "dicache difference": DiCachePolicy(0.5, error="difference"),
        "diffusers taylor": DiffusersTaylorPolicy(),
        "drift": DriftPolicy(CONFIG),
        "easycache": EasyCachePolicy(0.8, warmup_steps=2),
        "ertacache": ERTACachePolicy(ERTA),
        "first block": FirstBlockPolicy(10.0),
        "first window": FirstWindowPolicy(config=CONFIG),
        "fixed": FixedPolicy(1, config=CONFIG),
        "full": FullPolicy(),
        "magcache": MagCachePolicy([1.0] * STEPS),
        "margin": MarginPolicy(CONFIG),
        **{f"nonlinear {one.label.family}": NonlinearPolicy(one, CONFIG) for one in NONLINEAR},
        "nonlinear tc-pade": NonlinearPolicy(TCPade(num_steps=STEPS, alpha=1.5, beta=0.5), CONFIG),
        "nonlinear fft": NonlinearPolicy(FrequencySplit(cutoff=0.3, transform="fft"), CONFIG),
        "nonlinear tap": NonlinearTAPPolicy(NONLINEAR, CONFIG),
        "oracle": OraclePolicy(CONFIG),
        "random": RandomPolicy(CONFIG),
        "ridge": RidgePolicy(CONFIG),
        "seacache": SeaCachePolicy([0.5] * STEPS, 9.0),
        "several depths": SeveralDepthsPolicy(CONFIG),
        "shuffled": ShuffledPolicy(CONFIG),
        "single": SinglePolicy(HermiteFamily(), CONFIG),
        "smoothed": SmoothedPolicy(CONFIG),
        "teacache": TeaCachePolicy(100.0),
        "wiener": WienerPolicy(*spectrum, CONFIG),
        "wiener shuffled": ShuffledWienerPolicy(*spectrum, CONFIG),
        "zeus": ZeusPolicy(start=2, end=9),
        **every_partial_policy(),
    }


def every_partial_policy():
    """Those that run some of the model between full steps, for three blocks."""
    feed_forward = Part("feed_forward", 1, 2)
    return {
        "bac": ModuleTablePolicy({feed_forward: (0, 2, 5)}),
        "dbcache": DBCachePolicy(1.0, first=1, last=1, warmup_steps=3, order=1),
        "delta dit": DeltaDiTPolicy(CONFIG, group=2, detail=0),
        "groups": GroupsPolicy(((1, 2),), CONFIG),
        "hsa": HSAPolicy((1, 3), (0.25, 0.75), dense=2),
        "modules": ModulesPolicy(2, CONFIG),
        "pab": PABPolicy(window=(0, 1)),
        "similarity": SimilarityPolicy(),
        "temporal delta": TemporalDeltaPolicy(0.5),
        "model switch": ModelSwitchPolicy(make("SD3").model, 6),
        "ras": RASPolicy(0.3, dense=2),
        "tap tokens": TAPTokensPolicy(0.25, CONFIG),
        "tap tokens error": TAPTokensPolicy(0.25, CONFIG, names="error"),
        "toca": ToCaPolicy(0.25, CONFIG),
    }
