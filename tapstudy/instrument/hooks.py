"""The hooks: on the transformer, on every block, on the probed attention, and on the tail.

A full step runs untouched but for two looks: the probe at the first input of the probed block's self-attention, and
the residual, input of the tail minus input of the first block. At a skip step the probed block is stopped by an
exception when its attention is about to run, the other blocks hand their input on, and the tail receives the input of
the first block plus the predicted residual (with the residual in latent space the exception, or no forward at all,
reaches the transformer's own hook, which returns model input plus predicted residual).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.call import Host
from tapstudy.instrument.places import Method

# Decisions between steps stay in Python under torch.compile. The reason is what a user of fullgraph=True gets to read.
_REASON = {
    "reason": "tapstudy decides in Python what a step runs; compile the model without fullgraph=True, or only its "
    "blocks, with compile_repeated_blocks()"
}
in_python: Callable[..., Any] = functools.partial(
    torch.compiler.disable, **_REASON if "reason" in inspect.signature(torch.compiler.disable).parameters else {}
)


class StopForward(Exception):
    """Unwinds the forward pass once the probe is known. Carries no tensor, so no traceback can hold one."""


class ContextHook:
    """On the transformer's `cache_context`, where pipelines name their calls."""

    def __init__(self, instrument: Host) -> None:
        self.instrument = instrument

    @contextmanager
    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[None]:
        names = self.instrument.threads.names
        names.told = args[0] if args else kwargs["name"]
        try:
            with inner(*args, **kwargs):
                yield
        finally:
            names.told = None


class EndHook:
    """On the method that pipelines look for at the end of a run; classes without caches of their own lack it."""

    def __init__(self, instrument: Host) -> None:
        self.instrument = instrument

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.instrument.end_trajectory()
        return inner(*args, **kwargs)


class BlockHook:
    """On a block: runs it, stops it at the probe, or hands its input on.

    Args:
        stream: position of the image stream in the tuple the block returns, None for that tensor alone.
        first: whether this is the first block of the model.
        place: -1 before the probed block, 0 for that block, 1 behind it. (Not the block's number: under torch.compile
            one compiled graph then serves all blocks of a kind.)
    """

    def __init__(self, instrument: Host, stream: int | None, *, first: bool, place: int) -> None:
        self.instrument, self.stream, self.first, self.place = instrument, stream, first, place

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.instrument.call
        if call is None:
            if self.first and not torch.compiler.is_compiling():
                self.instrument.passed_by()
            return inner(*args, **kwargs)
        if self.first:
            call.start = args[0] if args else kwargs["hidden_states"]
            if call.state == "skip":
                # patch embeddings leave channels first in memory: norm, sum and tail norm would each reorder it
                call.start = call.start.contiguous()
                if args:
                    args = (call.start, *args[1:])
                else:
                    kwargs = {**kwargs, "hidden_states": call.start}
            if not call.latent:
                call.home = call.start.device
        if self.place == 0 and call.probe_kind == "stream":
            call.probed = args[0] if args else kwargs["hidden_states"]
            if call.state == "undecided":
                self.instrument.decide(call)
            if call.stops and call.latent:
                raise StopForward
        if self.place > 0 and call.state == "undecided":  # the model left the probed block out
            call.give_up(call.incomplete(call.start) or "probe not reached")
        if not call.stops or self.place < 0:
            return inner(*args, **kwargs)
        if self.place == 0 and call.probe_kind == "modulated":
            if call.stops and not torch.compiler.is_compiling():
                inner = getattr(inner, "_torchdynamo_orig_callable", inner)  # what runs up to the probe needs no graph
            try:
                output = inner(*args, **kwargs)
            except StopForward:
                if call.latent:
                    raise
            else:
                if call.stops:  # its attention was not called: no probe
                    call.give_up("probe not reached")
                    if call.blanks:  # nothing else is lost, all blocks so far ran, but on blanks: from the start
                        raise StopForward
                return output
        return pass_through(self.stream, args, kwargs, call.run.tail_device)


def pass_through(
    stream: int | None, args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device | None = None
) -> Any:
    """Return what a block gives that hands its input on; `stream` as in `BlockHook`.

    `device`: where the blocks would have brought the image stream, None: it stays.
    """
    hidden = args[0] if args else kwargs["hidden_states"]
    if device is not None:
        hidden = hidden.to(device)
    if stream is None:
        return hidden
    encoder = args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")
    return (hidden, encoder) if stream == 0 else (encoder, hidden)


class ProbeHook:
    """On the self-attention of the probed block: takes the probe, and stops there at a skip step."""

    def __init__(self, instrument: Host) -> None:
        self.instrument = instrument

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.instrument.call
        if call is not None and call.probe_kind == "modulated" and not call.cut:
            call.probed = args[0] if args else kwargs["hidden_states"]
            if call.state == "undecided":
                self.instrument.decide(call)
            if call.stops:
                raise StopForward
        return inner(*args, **kwargs)


class DepthHook:
    """On the self-attention of another block: takes its modulated input along, for recordings."""

    def __init__(self, instrument: Host, depth: int) -> None:
        self.instrument, self.depth = instrument, depth

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.instrument.call
        if call is not None:
            call.deeper_inputs[self.depth] = args[0] if args else kwargs["hidden_states"]
        return inner(*args, **kwargs)


class TailHook:
    """On the first module after the blocks: reads the residual of a full step, or puts the predicted one in."""

    def __init__(self, instrument: Host) -> None:
        self.instrument = instrument

    @in_python
    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = self.instrument.call
        if call is None or (call.latent and call.decision.tokens is None):
            return inner(*args, **kwargs)
        tail: Tensor = args[0] if args else kwargs["hidden_states"]
        replaced = self.instrument.at_tail(call, tail)
        if args:
            return inner(replaced, *args[1:], **kwargs)
        return inner(**{**kwargs, "hidden_states": replaced})
