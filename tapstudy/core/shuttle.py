"""How anchors get to where they are kept, and back to where they are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sent:
    """Tensors on their way: not to be read before they were received.

    Attributes:
        arrival: what the reader must wait for, None if they are there.
    """

    tensors: list[Tensor]
    arrival: Any = None


class Lane(Protocol):
    """The way between the features and the anchors kept of them."""

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        """A buffer at the place of keeping."""
        ...

    def keep(self, buffer: Tensor, tensor: Tensor) -> None:
        """Copy `tensor` into `buffer`; afterwards the caller may overwrite it."""
        ...

    def send(self, buffers: Sequence[Tensor]) -> Sent:
        """Begin to bring buffers to where features are."""
        ...

    def receive(self, sent: Sent) -> list[Tensor]:
        """What was sent, ready to be read."""
        ...


class Here:
    """Anchors are kept where features are: nothing moves, the reader gets the buffers themselves."""

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty_like(like, dtype=dtype, requires_grad=False)

    def keep(self, buffer: Tensor, tensor: Tensor) -> None:
        buffer.copy_(tensor)

    def send(self, buffers: Sequence[Tensor]) -> Sent:
        return Sent(list(buffers))

    def receive(self, sent: Sent) -> list[Tensor]:
        return sent.tensors


class Elsewhere(Here):
    """Between any two devices; the host waits for every copy."""

    def __init__(self, features: torch.device, kept: torch.device) -> None:
        self.features, self.kept = features, kept

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty(like.shape, dtype=dtype, device=self.kept)

    def send(self, buffers: Sequence[Tensor]) -> Sent:
        return Sent([buffer.to(self.features) for buffer in buffers])


class CudaStreams:
    """A stream of its own for copies between a CUDA device and pinned host memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: Any = torch.cuda.Stream(device)

    def host_memory(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def fork(self) -> None:
        """Copies from here on come after all that was computed so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def copy(self, into: Tensor, source: Tensor) -> None:
        with torch.cuda.stream(self.stream):
            into.copy_(source, non_blocking=True)
        # its memory must not go to another tensor while it is copied, even if nobody waits for that
        (into if into.is_cuda else source).record_stream(self.stream)

    def mark(self) -> Any:
        """The end of all copies so far."""
        return self.stream.record_event()

    def join(self, mark: Any) -> None:
        """What is computed from here on comes after the copies before `mark`. The host goes on."""
        torch.cuda.current_stream(self.device).wait_event(mark)


class HostLane:
    """Between a device and pinned host memory, in a stream beside the computation.

    The host never waits. What is computed waits, at a full step until its own anchor is away (the features are the
    model's, which may overwrite them at once), and at a skip step until the anchors that it reads are there.
    """

    def __init__(self, features: torch.device, streams: CudaStreams) -> None:
        self.features, self.streams = features, streams

    def empty(self, like: Tensor, dtype: torch.dtype) -> Tensor:
        return self.streams.host_memory(like.shape, dtype)

    def keep(self, buffer: Tensor, tensor: Tensor) -> None:
        ready = tensor.to(buffer.dtype).contiguous()  # on its device, so that the transfer is a plain copy of bytes
        self.streams.fork()
        self.streams.copy(buffer, ready)
        self.streams.join(self.streams.mark())

    def send(self, buffers: Sequence[Tensor]) -> Sent:
        tensors = [torch.empty(buffer.shape, dtype=buffer.dtype, device=self.features) for buffer in buffers]
        self.streams.fork()  # that memory may still be in use by what was computed before
        for tensor, buffer in zip(tensors, buffers, strict=True):
            self.streams.copy(tensor, buffer)
        return Sent(tensors, self.streams.mark())

    def receive(self, sent: Sent) -> list[Tensor]:
        self.streams.join(sent.arrival)
        return sent.tensors


def lane_between(features: torch.device, kept: torch.device) -> Lane:
    """The lane for features on one device and anchors on another (or the same: then nothing moves)."""
    if kept.type == features.type and kept.index in (None, features.index):
        return Here()
    if features.type == "cuda" and kept.type == "cpu":
        return HostLane(features, CudaStreams(features))
    return Elsewhere(features, kept)
