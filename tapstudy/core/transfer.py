"""Bring tensors to the device that they are needed on: anchors to where they are kept and back, and small ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


def onto(value: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Bring what the host has made to the device that it is needed on; the host goes on, and so does the device.

    (A blocking copy would wait for all that the device has been asked to do so far. Of a plain one the host's memory
    has been read when the call returns. The other way round nothing may be read before the device is done.)
    """
    return value.to(device, value.dtype if dtype is None else dtype, non_blocking=value.device.type == "cpu")


@dataclass(frozen=True)
class Pending:
    """Hold tensors whose transfer has begun: not to be read before `Transfer.wait`.

    Attributes:
        event: what the reader must wait for, None if the tensors are there.
    """

    tensors: list[Tensor]
    event: Any = None


class Transfer:
    """Move anchors between the device of the features and that of the history; here both are one and nothing moves.

    Attributes:
        moves: whether the two are different devices.
    """

    moves = False

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Allocate a buffer on the device of the history."""
        return torch.empty_like(like, dtype=dtype, requires_grad=False)

    def store(self, buffer: Tensor, tensor: Tensor) -> None:
        """Copy `tensor` into `buffer`; afterwards the caller may overwrite it."""
        buffer.copy_(tensor)

    def prefetch(self, buffers: Sequence[Tensor]) -> Pending:
        """Begin to copy buffers to the device of the features."""
        return Pending(list(buffers))

    def wait(self, pending: Pending) -> list[Tensor]:
        """Return what was prefetched, ready to be read."""
        return pending.tensors


class BlockingTransfer(Transfer):
    """Copy between any two devices; the host waits for every copy."""

    moves = True

    def __init__(self, features: torch.device, history: torch.device) -> None:
        self.features, self.history = features, history

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty(like.shape, dtype=dtype, device=self.history)

    def prefetch(self, buffers: Sequence[Tensor]) -> Pending:
        return Pending([buffer.to(self.features) for buffer in buffers])


class CopyStream:
    """Copy between a CUDA device and pinned host memory, in a stream beside the computation."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = torch.cuda.Stream(device)

    def host_memory(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Allocate pinned memory."""
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def fork(self) -> None:
        """Let copies from here on come after all that was computed so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, into: Tensor, source: Tensor) -> None:
        """Queue a copy."""
        with torch.cuda.stream(self.stream):
            into.copy_(source, non_blocking=True)
        # its memory must not go to another tensor while it is copied, even if nobody waits for that
        (into if into.is_cuda else source).record_stream(self.stream)

    def mark(self) -> Any:
        """Record the end of all copies so far."""
        return self.stream.record_event()

    def join(self, mark: Any) -> None:
        """Let what is computed from here on come after the copies before `mark`. The host goes on."""
        torch.cuda.current_stream(self.device).wait_event(mark)


class StreamTransfer(Transfer):
    """Copy between a device and pinned host memory, in a stream beside the computation.

    The host never waits. What is computed waits, at a full step until its own anchor is away (the features are the
    model's, which may overwrite them at once), and at a skip step until the anchors that it reads are there.
    """

    moves = True

    def __init__(self, features: torch.device, stream: CopyStream) -> None:
        self.features, self.stream = features, stream

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return self.stream.host_memory(like.shape, dtype)

    def store(self, buffer: Tensor, tensor: Tensor) -> None:
        ready = tensor.to(buffer.dtype).contiguous()  # on its device, so that the transfer is a plain copy of bytes
        self.stream.fork()
        self.stream.copy(buffer, ready)
        self.stream.join(self.stream.mark())

    def prefetch(self, buffers: Sequence[Tensor]) -> Pending:
        tensors = [torch.empty(buffer.shape, dtype=buffer.dtype, device=self.features) for buffer in buffers]
        self.stream.fork()  # that memory may still be in use by what was computed before
        for tensor, buffer in zip(tensors, buffers, strict=True):
            self.stream.copy(tensor, buffer)
        return Pending(tensors, self.stream.mark())

    def wait(self, pending: Pending) -> list[Tensor]:
        self.stream.join(pending.event)
        return pending.tensors


def transfer_between(features: torch.device, history: torch.device) -> Transfer:
    """Choose the transfer for features on one device and a history on another, or the same."""
    if history.type == features.type and history.index in (None, features.index):
        return Transfer()
    if features.type == "cuda" and history.type == "cpu":
        return StreamTransfer(features, CopyStream(features))
    return BlockingTransfer(features, history)
