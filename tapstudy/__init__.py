"""tapstudy: study and run TAP, the Token-Adaptive Predictor, on diffusion transformers."""

from tapstudy.bench.clock.choose_sigma import SigmaChoice, choose_sigma
from tapstudy.bench.clock.time_roughness import time_roughness
from tapstudy.instrument.adapters import Adapter, register_adapter
from tapstudy.instrument.check import Report, check
from tapstudy.instrument.handle import Handle, Summary, apply_policy, apply_tap, tap
from tapstudy.instrument.smooth_time import SmoothTime, smooth_time
from tapstudy.models.embedded import load
from tapstudy.policies.base import Policy, Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.recording.damage import RecordingError
from tapstudy.recording.record import record
from tapstudy.recording.store import open_recording

__version__ = "0.1.0"
__all__ = [
    "Adapter",
    "Handle",
    "Policy",
    "Prediction",
    "RecordingError",
    "Report",
    "SigmaChoice",
    "SmoothTime",
    "Summary",
    "TAPConfig",
    "apply_policy",
    "apply_tap",
    "check",
    "choose_sigma",
    "load",
    "open_recording",
    "record",
    "register_adapter",
    "smooth_time",
    "tap",
    "time_roughness",
]
