"""tapstudy: study and run TAP, the Token-Adaptive Predictor, on diffusion transformers."""

from typing import TYPE_CHECKING

from tapstudy.lazy import lazy_names

__version__ = "0.1.0"
_HOMES = {  # module of each public name, loaded when the name is first asked for
    "Adapter": "instrument.adapters",
    "FittedSchedule": "policies.fitted_schedule",
    "Handle": "instrument.handle",
    "Policy": "policies.base",
    "Prediction": "policies.base",
    "Quantised": "instrument.quantise",
    "RecordingError": "recording.damage",
    "Report": "instrument.check",
    "SigmaChoice": "bench.clock.choose_sigma",
    "SmoothTime": "instrument.smooth_time",
    "Summary": "instrument.summary",
    "TAPConfig": "policies.config",
    "apply_policy": "instrument.handle",
    "apply_tap": "instrument.handle",
    "check": "instrument.check",
    "compare": "bench.compare",
    "fit_schedule": "bench.fit.schedule",
    "choose_sigma": "bench.clock.choose_sigma",
    "load": "models.embedded",
    "open_recording": "recording.store",
    "quantise": "instrument.quantise",
    "record": "recording.record",
    "register_adapter": "instrument.adapters",
    "smooth_time": "instrument.smooth_time",
    "tap": "instrument.tap",
    "time_roughness": "bench.clock.time_roughness",
    "unregister_adapter": "instrument.adapters",
}
__all__ = sorted(_HOMES)

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from tapstudy.bench.clock.choose_sigma import SigmaChoice as SigmaChoice
    from tapstudy.bench.clock.choose_sigma import choose_sigma as choose_sigma
    from tapstudy.bench.clock.time_roughness import time_roughness as time_roughness
    from tapstudy.bench.compare import compare as compare
    from tapstudy.bench.fit.schedule import fit_schedule as fit_schedule
    from tapstudy.instrument.adapters import Adapter as Adapter
    from tapstudy.instrument.adapters import register_adapter as register_adapter
    from tapstudy.instrument.adapters import unregister_adapter as unregister_adapter
    from tapstudy.instrument.check import Report as Report
    from tapstudy.instrument.check import check as check
    from tapstudy.instrument.handle import Handle as Handle
    from tapstudy.instrument.handle import apply_policy as apply_policy
    from tapstudy.instrument.handle import apply_tap as apply_tap
    from tapstudy.instrument.quantise import Quantised as Quantised
    from tapstudy.instrument.quantise import quantise as quantise
    from tapstudy.instrument.smooth_time import SmoothTime as SmoothTime
    from tapstudy.instrument.smooth_time import smooth_time as smooth_time
    from tapstudy.instrument.summary import Summary as Summary
    from tapstudy.instrument.tap import tap as tap
    from tapstudy.models.embedded import load as load
    from tapstudy.policies.base import Policy as Policy
    from tapstudy.policies.base import Prediction as Prediction
    from tapstudy.policies.config import TAPConfig as TAPConfig
    from tapstudy.policies.fitted_schedule import FittedSchedule as FittedSchedule
    from tapstudy.recording.damage import RecordingError as RecordingError
    from tapstudy.recording.record import record as record
    from tapstudy.recording.store import open_recording as open_recording
else:
    __getattr__, __dir__ = lazy_names(__name__, _HOMES)
