"""tapstudy: study and run TAP, the Token-Adaptive Predictor, on diffusion transformers."""

from tapstudy.instrument.adapters import Adapter, register_adapter
from tapstudy.instrument.check import Report, check
from tapstudy.instrument.handle import Handle, Summary, apply_policy, apply_tap, tap
from tapstudy.models.embedded import load
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.config import TAPConfig

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "Handle",
    "Policy",
    "Prediction",
    "Report",
    "Summary",
    "TAPConfig",
    "apply_policy",
    "apply_tap",
    "check",
    "load",
    "register_adapter",
    "tap",
]
