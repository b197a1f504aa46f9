"""Decide when a model runs in full, and predict what stands in for it in between."""

import types

from tapstudy.policies.adaptive import AdaptiveTAPPolicy as AdaptiveTAPPolicy
from tapstudy.policies.anchored import AnchoredPolicy as AnchoredPolicy
from tapstudy.policies.base import Losses as Losses
from tapstudy.policies.base import Policy as Policy
from tapstudy.policies.base import Prediction as Prediction
from tapstudy.policies.base import ProbeKind as ProbeKind
from tapstudy.policies.base import ResidualSite as ResidualSite
from tapstudy.policies.base import RunInfo as RunInfo
from tapstudy.policies.base import check_policy as check_policy
from tapstudy.policies.blended import BlendedPolicy as BlendedPolicy
from tapstudy.policies.caching import CachePolicy as CachePolicy
from tapstudy.policies.caching import ChangePolicy as ChangePolicy
from tapstudy.policies.calibrated import CalibratedPolicy as CalibratedPolicy
from tapstudy.policies.calibrated import best_rows as best_rows
from tapstudy.policies.calibrated import fit_rows as fit_rows
from tapstudy.policies.calibrated import skipped_steps as skipped_steps
from tapstudy.policies.cg_taylor import CGTaylorPolicy as CGTaylorPolicy
from tapstudy.policies.channel_groups import ChannelGroupsPolicy as ChannelGroupsPolicy
from tapstudy.policies.channel_groups import best_members as best_members
from tapstudy.policies.channel_groups import group_channels as group_channels
from tapstudy.policies.class_rows import ClassRowsPolicy as ClassRowsPolicy
from tapstudy.policies.class_rows import clean_tokens as clean_tokens
from tapstudy.policies.class_rows import fit_class_rows as fit_class_rows
from tapstudy.policies.config import TAPConfig as TAPConfig
from tapstudy.policies.dicache import DiCachePolicy as DiCachePolicy
from tapstudy.policies.diffusers_taylor import DiffusersTaylorPolicy as DiffusersTaylorPolicy
from tapstudy.policies.drift import DriftPolicy as DriftPolicy
from tapstudy.policies.ertacache import ERTACachePolicy as ERTACachePolicy
from tapstudy.policies.ertacache import ErtaCalibration as ErtaCalibration
from tapstudy.policies.ertacache import calibrate_erta as calibrate_erta
from tapstudy.policies.first_block import FirstBlockPolicy as FirstBlockPolicy
from tapstudy.policies.first_window import FirstWindowPolicy as FirstWindowPolicy
from tapstudy.policies.fitted_schedule import FittedSchedule as FittedSchedule
from tapstudy.policies.fixed import FixedPolicy as FixedPolicy
from tapstudy.policies.full import FullPolicy as FullPolicy
from tapstudy.policies.magcache import MagCachePolicy as MagCachePolicy
from tapstudy.policies.magcache import magnitude_ratios as magnitude_ratios
from tapstudy.policies.margin import MarginPolicy as MarginPolicy
from tapstudy.policies.nonlinear import NonlinearPolicy as NonlinearPolicy
from tapstudy.policies.nonlinear import NonlinearTAPPolicy as NonlinearTAPPolicy
from tapstudy.policies.oracle import OraclePolicy as OraclePolicy
from tapstudy.policies.random import RandomPolicy as RandomPolicy
from tapstudy.policies.ridge import RidgePolicy as RidgePolicy
from tapstudy.policies.several_depths import SeveralDepthsPolicy as SeveralDepthsPolicy
from tapstudy.policies.shuffled import ShuffledPolicy as ShuffledPolicy
from tapstudy.policies.shuffled import shuffled_tokens as shuffled_tokens
from tapstudy.policies.single import SinglePolicy as SinglePolicy
from tapstudy.policies.smoothed import SmoothedPolicy as SmoothedPolicy
from tapstudy.policies.tap import TAPPolicy as TAPPolicy
from tapstudy.policies.teacache import TeaCachePolicy as TeaCachePolicy
from tapstudy.policies.teacache import rescaling_coefficients as rescaling_coefficients
from tapstudy.policies.wiener import ShuffledWienerPolicy as ShuffledWienerPolicy
from tapstudy.policies.wiener import WienerPolicy as WienerPolicy
from tapstudy.policies.wiener import clean_power as clean_power
from tapstudy.policies.wiener import wiener_filtered as wiener_filtered
from tapstudy.policies.zeus import ZeusPolicy as ZeusPolicy

__all__ = sorted(name for name, found in vars().items() if name[0] != "_" and not isinstance(found, types.ModuleType))
