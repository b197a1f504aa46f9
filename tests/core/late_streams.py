"""A stand-in for the copy stream of a CUDA device."""

from __future__ import annotations

import torch


class LateStreams:
    """Copies happen at the last moment: when something is computed that has been told to wait for them.

    The computation itself is whatever the test does between the calls. `log` has every fork, copy and join.
    """

    def __init__(self):
        self.waiting, self.done, self.log = [], 0, []

    def host_memory(self, shape, dtype):
        return torch.full(shape, torch.nan, dtype=dtype)

    def fork(self):
        self.log.append("fork")

    def copy(self, into, source):
        self.log.append("copy")
        into.fill_(torch.nan)  # read too early, it is seen
        self.waiting.append((into, source))

    def mark(self):
        return self.done + len(self.waiting)

    def join(self, mark):
        self.log.append("join")
        while self.done < mark:
            into, source = self.waiting.pop(0)
            into.copy_(source)
            self.done += 1
