"""Keep the history: probe and residual at the most recent full steps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tapstudy.core.transfer import Pending, Transfer, transfer_between


class Anchors:
    """Keep the last `capacity` full steps, newest first.

    Tensors are copied in (the model may reuse its buffers); once full, the oldest buffer is overwritten in place,
    unless `make_room` has freed it before. Memory: capacity * (probe + residual).

    Kept elsewhere than the features (`device`), anchors are copied there after every full step and back when they are
    read: reading the probes also prefetches the residuals, which then travel while the probes are scored. The copies
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
        nbytes: bytes kept, in host memory if that is where anchors are kept.
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
        self._transfer = Transfer()
        self._pending: Pending | None = None
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def probes(self) -> list[Tensor]:
        if not self._transfer.moves:
            return self._probes.copy()
        probes = self._transfer.prefetch(self._probes)
        if self._pending is None:
            self._pending = self._transfer.prefetch(self._residuals)
        return self._transfer.wait(probes)

    @property
    def residuals(self) -> list[Tensor]:
        if not self._transfer.moves:
            return self._residuals.copy()
        pending, self._pending = self._pending, None
        return self._transfer.wait(self._transfer.prefetch(self._residuals) if pending is None else pending)

    @property
    def shape(self) -> torch.Size:
        """Return the shape of a residual, (batch, token, channel); nothing is brought back for it."""
        return self._residuals[0].shape

    def make_room(self) -> None:
        """Drop the full step that the next `push` would overwrite, for its memory to serve the pass in between.

        Kept elsewhere than the features it stays: the pass could not use that memory.
        """
        if len(self) == self.capacity and not self._transfer.moves:
            self._pending = None
            for kept in (self.steps, self._probes, self._residuals):
                del kept[self.capacity - 1 :]
            self._weigh()

    def push(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
        """Add a full step later than all others.

        Raises ValueError on a step out of order: its differences would divide by a gap of zero or less.
        """
        if self.steps and step <= self.steps[0]:
            raise ValueError(f"anchors must come in order: step {step} after step {self.steps[0]}")
        if not self.steps:
            self._transfer = transfer_between(residual.device, self.device or residual.device)
        self._pending = None
        self.steps.insert(0, step)
        del self.steps[self.capacity :]
        self._rotate(self._residuals, residual, self.dtype)
        if probe is not None:
            self._rotate(self._probes, probe, self.probe_dtype or probe.dtype)
        self._weigh()

    def _weigh(self) -> None:
        self.nbytes = sum(tensor.nbytes for tensor in (*self._probes, *self._residuals))

    def _rotate(self, buffers: list[Tensor], tensor: Tensor, dtype: torch.dtype) -> None:
        if len(buffers) < self.capacity:
            buffers.insert(0, self._transfer.empty(tensor, dtype))
        else:
            buffers.insert(0, buffers.pop())
        self._transfer.store(buffers[0], tensor.detach())


@dataclass(frozen=True)
class History:
    """Set how anchors are kept.

    Args:
        dtype, probe_dtype, device: as for `Anchors`.

    Raises:
        TypeError, ValueError: no floating dtype of 16 bits or more, or a device that torch does not know. The messages
            name the settings of `TAPConfig`: history_dtype, probe_dtype, history_device.
    """

    dtype: torch.dtype = torch.float32
    probe_dtype: torch.dtype | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        probe_dtype = torch.float32 if self.probe_dtype is None else self.probe_dtype
        for name, value in (("history_dtype", self.dtype), ("probe_dtype", probe_dtype)):
            if not (isinstance(value, torch.dtype) and value.is_floating_point):
                raise TypeError(f"{name} must be a floating torch.dtype, got {value!r}")
            if value.itemsize < 2:
                raise ValueError(
                    f"{name} must have 16 bits or more, got {value}: torch does not compute with narrower floats; use "
                    "torch.bfloat16 or torch.float16"
                )
        if not isinstance(self.device, str | None):
            raise TypeError(f'history_device must be the name of a device such as "cpu", or None, got {self.device!r}')
        try:
            torch.device("cpu" if self.device is None else self.device)
        except RuntimeError as error:
            raise ValueError(f"torch knows no history_device {self.device!r}") from error

    def anchors(self, capacity: int) -> Anchors:
        """Make an empty history of so many full steps."""
        return Anchors(capacity, self.dtype, probe_dtype=self.probe_dtype, device=self.device)
