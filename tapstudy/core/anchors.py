"""The history: probe and residual at the most recent full steps."""

from __future__ import annotations

import torch
from torch import Tensor

from tapstudy.core.shuttle import Here, Lane, Sent, lane_between


class Anchors:
    """The last `capacity` full steps, newest first.

    Tensors are copied in (the model may reuse its buffers); once full, the oldest buffer is overwritten in place, so
    a long run allocates nothing. Memory: capacity * (probe + residual).

    Kept elsewhere than the features (`device`), anchors are copied there after every full step and back when they are
    read: reading the probes also sends for the residuals, which then travel while the probes are scored. The copies
    belong to the reader, nothing of them stays behind. Where a step reads every anchor once, as TAP does, that is one
    transfer of the history per skip step; between these, and during full steps, the device of the features holds none
    of it.

    Args:
        dtype: of the stored residuals.
        probe_dtype: of the stored probes, None for the model's.
        device: where anchors are kept, None for where the features are. Host memory beside CUDA is pinned.

    Attributes:
        steps: step indices, newest first.
        probes: tensors (batch, token, channel), or empty when none are given.
        residuals: tensors of the residual's shape in `dtype`.
    """

    def __init__(
        self,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        *,
        probe_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.capacity, self.dtype, self.probe_dtype = capacity, dtype, probe_dtype
        self.device = None if device is None else torch.device(device)
        self.clear()

    def clear(self) -> None:
        self.steps: list[int] = []
        self._probes: list[Tensor] = []
        self._residuals: list[Tensor] = []
        self._lane: Lane = Here()
        self._coming: Sent | None = None

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def probes(self) -> list[Tensor]:
        probes = self._lane.send(self._probes)
        if self._coming is None:
            self._coming = self._lane.send(self._residuals)
        return self._lane.receive(probes)

    @property
    def residuals(self) -> list[Tensor]:
        coming, self._coming = self._coming, None
        return self._lane.receive(self._lane.send(self._residuals) if coming is None else coming)

    @property
    def nbytes(self) -> int:
        """Bytes kept, in host memory if that is where anchors are kept."""
        return sum(tensor.nbytes for tensor in (*self._probes, *self._residuals))

    def push(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        """Add a full step later than all others.

        Raises ValueError on a step out of order: its differences would divide by a gap of zero or less.
        """
        if self.steps and step <= self.steps[0]:
            raise ValueError(f"anchors must come in order: step {step} after step {self.steps[0]}")
        if not self.steps:
            self._lane = lane_between(residual.device, self.device or residual.device)
        self._coming = None
        self.steps.insert(0, step)
        del self.steps[self.capacity :]
        self._rotate(self._residuals, residual, self.dtype)
        if probe is not None:
            self._rotate(self._probes, probe, self.probe_dtype or probe.dtype)

    def _rotate(self, buffers: list[Tensor], tensor: Tensor, dtype: torch.dtype) -> None:
        if len(buffers) < self.capacity:
            buffers.insert(0, self._lane.empty(tensor, dtype))
        else:
            buffers.insert(0, buffers.pop())
        self._lane.keep(buffers[0], tensor.detach())
