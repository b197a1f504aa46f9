"""Seconds per kind of step, without making the host wait for the device."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class StepClock:
    """On CUDA, events are recorded and only read when asked; elsewhere the wall clock is read at once."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = defaultdict(list)
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def measure(self, device: torch.device) -> Iterator[dict[str, str]]:
        """Time the body; it must put the kind of step under "kind" (a body that raises is not recorded)."""
        note: dict[str, str] = {}
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))  # not that of the device that is current
            yield note
            end.record(torch.cuda.current_stream(device))
            self._events.append((note["kind"], start, end))
        else:
            started = time.perf_counter()
            yield note
            self._seconds[note["kind"]].append(time.perf_counter() - started)

    def seconds(self) -> dict[str, list[float]]:
        """Return seconds of every step so far, by kind."""
        for kind, start, end in self._events:
            end.synchronize()
            self._seconds[kind].append(start.elapsed_time(end) / 1000)
        self._events.clear()
        return {kind: list(values) for kind, values in self._seconds.items()}
