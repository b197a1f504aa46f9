"""The history: probe and residual at the most recent full steps."""

from __future__ import annotations

import torch


class Anchors:
    """The last `capacity` full steps, newest first.

    Tensors are copied in (the model may reuse its buffers); once full, the oldest buffer is overwritten in place, so
    a long run allocates nothing. Memory: capacity * (probe + residual).

    Attributes:
        steps: step indices, newest first.
        probes: tensors (batch, token, channel) in the model's dtype, or empty when none are given.
        residuals: tensors of the residual's shape in `dtype`.
    """

    def __init__(self, capacity: int, dtype: torch.dtype = torch.float32) -> None:
        self.capacity, self.dtype = capacity, dtype
        self.clear()

    def clear(self) -> None:
        self.steps: list[int] = []
        self.probes: list[torch.Tensor] = []
        self.residuals: list[torch.Tensor] = []

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.probes, *self.residuals))

    def push(self, step: int, probe: torch.Tensor | None, residual: torch.Tensor) -> None:
        """Add a full step later than all others.

        Raises ValueError on a step out of order: its differences would divide by a gap of zero or less.
        """
        if self.steps and step <= self.steps[0]:
            raise ValueError(f"anchors must come in order: step {step} after step {self.steps[0]}")
        self.steps.insert(0, step)
        del self.steps[self.capacity :]
        _rotate(self.residuals, residual, self.capacity, self.dtype)
        if probe is not None:
            _rotate(self.probes, probe, self.capacity, probe.dtype)


def _rotate(buffers: list[torch.Tensor], tensor: torch.Tensor, capacity: int, dtype: torch.dtype) -> None:
    if len(buffers) < capacity:
        buffers.insert(0, torch.empty_like(tensor, dtype=dtype, requires_grad=False))
    else:
        buffers.insert(0, buffers.pop())
    buffers[0].copy_(tensor.detach())
