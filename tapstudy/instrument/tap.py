"""TAP for the length of a `with` block: the one line that most users need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tapstudy.instrument.belongs import check_schedule
from tapstudy.instrument.handle import Handle, apply_policy, apply_tap
from tapstudy.instrument.smooth_time import smooth_time
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fitted_schedule import FittedSchedule
from tapstudy.policies.tap import TAPPolicy


@contextmanager
def tap(target: Any, *, schedule: FittedSchedule | str | Path | None = None, **settings: Any) -> Iterator[Handle]:
    """TAP for the length of a `with` block; settings are the fields of `TAPConfig`.

    Args:
        target: a pipeline, or a transformer.
        schedule: what `tapstudy.fit_schedule` found, or its file: its full steps, its clock, and what it found best
            between them; with further settings always TAP.
        settings: fields of `TAPConfig`; the schedule's in place of `interval`, `warmup_steps` and `full_steps`.

    Raises:
        FileNotFoundError, ValueError: no such file, or one that holds something else; a run of other steps, or a
            pipeline of another class, than it was fitted to. Of other weights of the same class it warns.

    Examples:
        >>> with tapstudy.tap(pipe, interval=6) as handle:  # doctest: +SKIP
        ...     image = pipe("a fox in the snow").images[0]
        >>> print(handle.summary())  # doctest: +SKIP
    """
    if schedule is None:
        with apply_tap(target, TAPConfig.of(settings)) as handle:
            yield handle
        return
    if twice := sorted({"interval", "warmup_steps", "full_steps", "cooldown_steps", "num_steps"} & settings.keys()):
        raise ValueError(f"tap: the schedule says which steps run in full: leave out {', '.join(twice)}")
    found = FittedSchedule.of(schedule)
    check_schedule(target, found)
    policy = TAPPolicy(found.config(**settings)) if settings else found.policy()
    clock = smooth_time(target, found.smooth_time) if found.smooth_time else nullcontext()
    with clock, apply_policy(target, policy) as handle:
        yield handle
