"""Fake CUDA devices on a build of torch without CUDA: what a GPU would be asked to do, and where the host would wait.

`FakeTensorMode` knows devices, and refuses to mix them. Beside it one mode sees every read of a device's value by the
host, which would wait for the device, and another every copy between devices and every operation that would be a
launch. What it cannot show: times, which kernels libraries pick, CUDA graphs, what Triton compiles to.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

DEVICES = 2
ROOT = str(Path(__file__).parents[2] / "tapstudy")


class NoCompiler(RuntimeError):
    """The guard cannot be built here."""


@cache
def _guard(folder: str) -> ctypes.CDLL:
    """Build the device guard, and register it with torch."""
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    headers = Path(torch.__file__).parent
    if compiler is None or not (headers / "include" / "c10").is_dir():
        raise NoCompiler("fake CUDA devices need g++ (or $CXX) and torch's headers")
    library = Path(folder) / "guard.so"
    command = [compiler, "-std=c++20", "-O0", "-fPIC", "-shared", str(Path(__file__).with_name("guard.cpp"))]
    command += [f"-I{headers / 'include'}", f"-L{headers / 'lib'}", "-lc10", "-o", str(library)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode:
        raise NoCompiler(f"{compiler} could not build the device guard: {built.stderr[-500:]}")
    return ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


@dataclass
class Tally:
    """What was asked of the devices in one phase.

    Attributes:
        waits: reads of device values by the host, synchronisations, and blocking copies between host and device, by
            what and where.
        copies: non-blocking copies between devices, likewise.
        launches: operations on devices, by name.
        moved: bytes that these read and write.
        wide: those of operations with float64 in them.
        own, own_moved, own_wide: of what the package asked for itself, beside the model.
        peak: most bytes of live storages on the devices.
    """

    waits: Counter[tuple[str, str]] = field(default_factory=Counter)
    copies: Counter[tuple[str, str]] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    moved: int = 0
    wide: int = 0
    own: Counter[str] = field(default_factory=Counter)
    own_moved: int = 0
    own_wide: int = 0
    peak: int = 0


class Trace:
    """What was asked of the devices, by phase. Passes under a policy are phases of their own, by what they were."""

    def __init__(self, answer: Callable[[Tensor], float] | None) -> None:
        self.tally = Tally()  # of the phase in progress
        self.passes: list[tuple[str, Tally]] = []
        self.live = 0
        self.streams: list[torch.device] = []  # that events were recorded in
        self._kind = ""
        self._answer = answer or (lambda tensor: 1)
        self._values: Any = WeakTensorKeyDictionary()  # of tensors on a device, where known
        self._storages: set[int] = set()

    def of(self, kind: str) -> list[Tally]:
        """Return the tallies of the passes of one kind: "full", "skip"."""
        return [tally for found, tally in self.passes if found == kind]

    def phase(self) -> Tally:
        """Begin a phase: return the one that is over."""
        over, self.tally = self.tally, Tally(peak=self.live)
        return over

    def watch(self, handle: Any) -> None:
        """Make every pass of the transformers of a handle a phase."""
        for instrument in handle._instruments.values():
            forward, conclude = instrument.run, instrument._conclude

            def run(*args: Any, forward: Any = forward) -> Any:
                self.phase()
                output = forward(*args)
                self.passes.append((self._kind, self.phase()))
                return output

            def concluded(run: Any, call: Any, conclude: Any = conclude) -> None:
                self._kind = "aside" if call is None else call.state
                conclude(run, call)

            instrument.run, instrument._conclude = run, concluded

    def on(self, value: Any, device: str = "cuda:0") -> Any:
        """Bring tensors in lists and mappings, or the weights of a module, to a fake device."""
        if isinstance(value, nn.Module):
            return _apply(value, lambda tensor: self._moved(tensor, device))
        return tree_map_only(Tensor, lambda tensor: self._moved(tensor, device), value)

    def _moved(self, tensor: Tensor, device: str) -> Tensor:
        moved = tensor.to(device)
        if not isinstance(tensor, FakeTensor):
            self._values[moved] = tensor
        return moved

    # What the modes report

    def wait(self, what: str) -> None:
        self.tally.waits[what, _place()] += 1

    def copy(self, what: str) -> None:
        self.tally.copies[what, _place()] += 1

    def read(self, tensor: Tensor) -> Tensor:
        """Return a host tensor that stands for a device's: its true values where they are known."""
        if tensor in self._values:
            return self._values[tensor]
        return torch.full(tensor.shape, self._answer(tensor), dtype=tensor.dtype)

    def hold(self, tensor: Tensor) -> None:
        """Count the storage of a tensor for as long as it lives."""
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._storages:
            return
        self._storages.add(key)
        self.live += size
        self.tally.peak = max(self.tally.peak, self.live)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._storages.discard(key)
        self.live -= size

    def launch(self, name: str, tensors: list[Tensor]) -> None:
        size = sum(map(_bytes, tensors))
        wide = size if any(tensor.dtype in (torch.float64, torch.complex128) for tensor in tensors) else 0
        tally = self.tally
        tally.launches[name] += 1
        tally.moved += size
        tally.wide += wide
        if _place().startswith("tapstudy/"):
            tally.own[name] += 1
            tally.own_moved += size
            tally.own_wide += wide


def _place() -> str:
    """Return the nearest line of code outside of torch: in the package, or in a model."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(ROOT):
            return f"tapstudy{name.removeprefix(ROOT)}:{frame.f_code.co_qualname}"
        if "/torch/" not in name and name != __file__ and "contextlib" not in name:
            return f"{'/'.join(Path(name).parts[-2:])}:{frame.f_code.co_qualname}"
        frame = frame.f_back
    return "?"


def _bytes(tensor: Tensor) -> int:
    """Count the bytes that a tensor touches: a number repeated over a dimension is one number."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count * tensor.element_size()


# operations that make no launch: views, and memory without contents
_NO_LAUNCH = frozenset(
    name
    for line in (
        "view _unsafe_view reshape _reshape_alias transpose permute movedim t expand slice select unsqueeze squeeze",
        "split split_with_sizes unbind chunk unfold unflatten flatten diagonal as_strided alias detach lift_fresh real",
        "view_as_real view_as_complex empty empty_strided empty_like new_empty new_empty_strided set_ resize_",
        "is_same_size sym_size size device _local_scalar_dense",
    )
    for name in line.split()
)

# operations that wait inside: for a number, or for what a solver of linear algebra says of its success
_WAITS = frozenset({"_local_scalar_dense", "_linalg_check_errors", "_linalg_eigh", "linalg_eig", "linalg_pinv"})

_READS: dict[Any, Callable[[Tensor], Any]] = {
    Tensor.item: Tensor.item,
    Tensor.__float__: float,
    Tensor.__int__: int,
    Tensor.__bool__: bool,
    Tensor.__index__: int,
    Tensor.cpu: lambda value: value,
    torch.is_nonzero: bool,
    Tensor.is_nonzero: bool,
    Tensor.nonzero: Tensor.nonzero,
    torch.nonzero: torch.nonzero,
}
_COMPARISONS = (torch.equal, Tensor.equal, torch.allclose, Tensor.allclose)
_REFUSED = (Tensor.numpy, Tensor.__array__)
# sizes of the result depend on values
_SIZED = (torch.unique, Tensor.unique, torch.masked_select, Tensor.masked_select, torch.bincount, Tensor.bincount)


def _on_device(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cuda"


class _Reads(TorchFunctionMode):
    """Sees the host read values of a device; a wait each."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        kwargs.pop("pin_memory", None)  # this build cannot pin
        if func is scaled_dot_product_attention:  # as fused kernels do: without a matrix of scores
            query, _, value = (*args, *(kwargs[name] for name in ("query", "key", "value") if name in kwargs))[:3]
            return query.new_empty(*query.shape[:-1], value.shape[-1])
        tensor = next((value for value in args if _on_device(value)), None)
        if tensor is not None:
            if func in _READS:
                self.trace.wait(func.__name__)
                with unset_fake_temporarily():
                    return _READS[func](self.trace.read(tensor))
            if func in _COMPARISONS:
                self.trace.wait(func.__name__)
                return args[0].shape == args[1].shape
            if func in _REFUSED:
                raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu()")
            if func in _SIZED:
                self.trace.wait(func.__name__)
                return torch.empty(kwargs.get("minlength", 1), dtype=torch.int64, device=tensor.device)
        return func(*args, **kwargs)


class _Work(TorchDispatchMode):
    """Sees copies between devices, launches, and new storages."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tree_leaves((args, kwargs))
        if not any(
            isinstance(value, FakeTensor) or (isinstance(value, torch.device) and value.type == "cuda")
            for value in given
        ):
            with unset_fake_temporarily():  # work of the host, on real values
                return func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func is torch.ops.aten.index.Tensor:
            args = self._without_masks(*args)
        output = func(*args, **kwargs)
        read = [value for value in given if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(output) if isinstance(value, Tensor)]
        for tensor in filter(_on_device, made):
            self.trace.hold(tensor)
        if name in ("_to_copy", "copy_") and read:
            self._copied(name, args, kwargs, source=read[-1] if name == "copy_" else read[0], into=made[0])
        if name in _WAITS and _on_device(read[0]):
            self.trace.wait(name)
        touched = list(filter(_on_device, (*read, *made)))
        if touched and name not in _NO_LAUNCH:
            self.trace.launch(name, touched)
        return output

    def _copied(self, name: str, args: Any, kwargs: Any, *, source: Tensor, into: Tensor) -> None:
        if source.device == into.device:
            return
        what = f"copy {source.device.type} -> {into.device.type}"
        blocking = not (args[2] if name == "copy_" and len(args) > 2 else kwargs.get("non_blocking", False))
        # copies between two GPUs are queued
        if blocking and "cpu" in (source.device.type, into.device.type):
            self.trace.wait(what)
        else:
            self.trace.copy(what)

    def _without_masks(self, tensor: Tensor, indices: Any) -> Any:
        """An index by a mask is as long as the mask has ones: a wait. Here all are ones."""
        if any(_on_device(index) and index.dtype == torch.bool for index in indices):
            self.trace.wait("index by a mask")
            indices = [
                torch.arange(len(index), device=index.device)
                if index is not None and index.dtype == torch.bool
                else index
                for index in indices
            ]
        return tensor, indices


def _tolist(trace: Trace) -> Callable[[Tensor], Any]:
    """Return a stand-in for `FakeTensor.tolist`, which reads one number after the other: it is one wait for all."""
    original = Tensor.tolist

    def tolist(self: Tensor) -> Any:
        if not _on_device(self):
            return original(self)
        trace.wait("tolist")
        with unset_fake_temporarily():
            return original(trace.read(self))

    return tolist


def _apply(self: nn.Module, function: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Apply a function to all weights, as `nn.Module._apply` does, which cannot swap fake ones."""
    for module in self.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(function(parameter.data), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = function(buffer)
    return self


def _torch_cuda(trace: Trace) -> dict[str, Any]:
    """Return stand-ins for what programs ask of `torch.cuda`."""

    class Stream:
        def __init__(self, device: Any = None, **_: Any) -> None:
            self.device = torch.device("cuda", 0) if device is None else torch.device(device)

        def wait_stream(self, other: Any) -> None: ...
        def wait_event(self, event: Any) -> None: ...
        def record_event(self, event: Any = None) -> Any:
            return event or Event()

        def synchronize(self) -> None:
            trace.wait("stream.synchronize")

    class Event:
        def __init__(self, **_: Any) -> None: ...
        def record(self, stream: Any = None) -> None:
            trace.streams.append((stream or Stream()).device)

        def elapsed_time(self, other: Any) -> float:
            return 1.0

        def synchronize(self) -> None:
            trace.wait("event.synchronize")

    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "current_device": lambda: 0,
        "device_count": lambda: DEVICES,
        "synchronize": lambda *_: trace.wait("cuda.synchronize"),
        "Event": Event,
        "Stream": Stream,
        "stream": lambda stream: nullcontext(),
        "current_stream": Stream,
        "default_stream": Stream,
        "get_device_name": lambda *_: "a fake GPU",
        "get_device_capability": lambda *_: (9, 0),
        "empty_cache": lambda: None,
        "manual_seed_all": lambda *_: None,
        "manual_seed": lambda *_: None,
        "mem_get_info": lambda *_: (80 << 30, 80 << 30),
        "get_rng_state": lambda *_: torch.zeros(1, dtype=torch.uint8),
        "set_rng_state": lambda *_: None,
    }


def _clear_caches() -> None:
    """Let no function of the package keep tensors of another mode."""
    for name, module in [*sys.modules.items()]:
        if name.startswith("tapstudy."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear") and getattr(value, "__module__", "").startswith("tapstudy."):
                    value.cache_clear()


@contextmanager
def fake_gpus(folder: str, answer: Callable[[Tensor], float] | None = None) -> Iterator[Trace]:
    """Work with two fake GPUs.

    Args:
        folder: to build the guard in.
        answer: of a device's tensor whose values nobody knows: the number that it is full of, 1 by default.

    Raises:
        NoCompiler: the guard cannot be built here.
    """
    guard = _guard(folder)
    trace = Trace(answer)
    with ExitStack() as stack:
        guard.set_fake_gpus(DEVICES)
        stack.callback(guard.set_fake_gpus, 0)
        for name, value in _torch_cuda(trace).items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        stack.enter_context(patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(patch.object(FakeTensor, "tolist", _tolist(trace)))
        stack.enter_context(patch.object(Tensor, "record_stream", lambda self, stream: None))
        stack.enter_context(patch("torch._subclasses.fake_tensor.init_gpu_context", lambda *_: None))
        stack.enter_context(patch.object(FakeTensorMode, "avoid_device_init", property(lambda self: True)))
        _clear_caches()
        stack.callback(_clear_caches)
        for mode in (FakeTensorMode(allow_non_fake_inputs=True), _Work(trace), _Reads(trace)):
            stack.enter_context(mode)
        yield trace
