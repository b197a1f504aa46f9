"""Where hooks stand: a stand-in takes the place of one method of one module, whoever else has a hand in that method.

accelerate and diffusers save what they find at `module.forward` and put it back later, in an order of their own. So a
stand-in never relies on being left alone: it is placed anew whenever it is not where it belongs, and taken out of every
place that others have saved it to. One that cannot be reached any more just passes calls on.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from diffusers.hooks.hooks import HookFunctionReference
from torch import nn

Method = Callable[..., Any]
Slot = tuple[Any, str]

# where torch keeps what `module.compile()` makes of a call
COMPILED = "_compiled_call_impl"

_nothing: Any = type(None)  # called without arguments it returns None, and pickles of it need no tapstudy


class Hook(Protocol):
    """What a stand-in does."""

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of the method; `inner` is what would have answered it."""


class StandIn:
    """In the place of a method: gives its calls to a hook, or, once that is gone, to the method.

    Copies and pickles hold the method itself. Without a __dict__, as those who wrap a method copy that to theirs.
    """

    __slots__ = ("__weakref__", "hook", "inner")

    def __init__(self, hook: Hook, inner: Method) -> None:
        self.hook: Hook | None = hook
        self.inner = inner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.hook is None:
            return self.inner(*args, **kwargs)
        return self.hook.run(self.inner, args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> StandIn:
        return self  # bound already, as the method is

    @property
    def __wrapped__(self) -> Method:  # the signature
        return self.inner

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.inner.__reduce_ex__(protocol)


class _Weakly:
    """A method of a module, which it does not keep alive."""

    __slots__ = ("module", "name")

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module, self.name = weakref.ref(module), name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__wrapped__(*args, **kwargs)

    @property
    def __wrapped__(self) -> Method:
        module = self.module()
        assert module is not None, "a method of a module that is gone"
        return own_method(module, self.name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)


# Stand-ins without a hook, by module, method, and kind of hook. torch.compile tells them from others by their identity,
# so that a policy which is put on again meets the graphs of the last time. One in use is not here: it holds its module,
# which then nothing would ever free.
_kept: WeakKeyDictionary[nn.Module, dict[tuple[str, type], StandIn]] = WeakKeyDictionary()


class Place:
    """One method of one module, and the stand-in that takes its place.

    Args:
        lowest: next to the method itself, below whatever others have put around it or will, and never moved; else on
            top of all that, so that a stand-in which does not call the method spares their work too.
        around: also around the module's compiled forward, should it have one (`module.compile()`): that then compiles
            to what it would without us.
    """

    def __init__(
        self, module: nn.Module, hook: Hook, *, name: str = "forward", lowest: bool = False, around: bool = False
    ) -> None:
        self.module, self.hook, self.name, self.lowest, self.around = module, hook, name, lowest, around
        self._held: StandIn | None = None
        self._found: Method | None = None

    @property
    def intact(self) -> bool:
        """Whether a call of the method comes to the stand-in, through nothing but hooks of accelerate or diffusers."""
        if self.around and self.name != COMPILED and getattr(self.module, COMPILED, None) is not None:
            return False  # the module was compiled since
        top = vars(self.module).get(self.name)
        if self._held is None or top is self._held or not self.lowest:
            return top is not None and top is self._held
        compiled = getattr(top, "_torchdynamo_orig_callable", None)
        if compiled is not None:  # forward = torch.compile(forward)
            top = inspect.unwrap(compiled, stop=lambda method: isinstance(method, StandIn))
        return any(value is self._held for value in (top, *map(_value, _inwards(self.module, top))))

    def take(self) -> None:
        """Put the stand-in where it belongs, if it is not there."""
        if self.intact:
            return
        self.leave()
        if self.around and getattr(self.module, COMPILED, None) is not None:
            self.name = COMPILED
        own = own_method(self.module, self.name)
        self._found = vars(self.module).get(self.name)
        if not self.lowest:
            self._held = self._stand_in(getattr(self.module, self.name, own))
            setattr(self.module, self.name, self._held)
            return
        self._held = self._stand_in(own)
        if self._found is None:
            setattr(self.module, self.name, own)
        for holder, name in list(_slots(self.module)):
            if getattr(holder, name) == own and holder is not self._held:
                setattr(holder, name, self._held)

    def leave(self) -> None:
        """Take the stand-in out of wherever it is by now: what others find there is what they would without it."""
        if self._held is None:
            return
        for holder, name in list(_slots(self.module)):
            if getattr(holder, name) is self._held:
                setattr(holder, name, self._held.inner)
        if self._found is None and vars(self.module).get(self.name) == self._held.inner:
            delattr(self.module, self.name)
        self._held.hook = None
        own = own_method(self.module, self.name)
        if self._held.inner == own:
            self._held.inner = _Weakly(self.module, self.name)
            _kept.setdefault(self.module, {})[self.name, type(self.hook)] = self._held
        self._held = None

    def _stand_in(self, inner: Method) -> StandIn:
        """Make a stand-in, or take the one that stood here before: compiled graphs know it."""
        own = inner == own_method(self.module, self.name)
        kept = _kept.get(self.module, {}).pop((self.name, type(self.hook)), None) if own else None
        if kept is None:
            return StandIn(self.hook, inner)
        kept.hook, kept.inner = self.hook, inner
        return kept


def own_method(module: nn.Module, name: str) -> Method:
    """Return the method that the module's class gives it, or one that does nothing."""
    method: Any = getattr(type(module), name, None) or _nothing
    return functools.partial(_nothing) if method is _nothing else method.__get__(module)


def occupied(module: nn.Module) -> bool:
    """Tell whether a stand-in takes the place of the module's forward, at any depth."""
    return any(isinstance(value, StandIn) and value.hook is not None for value in map(_value, _slots(module)))


def replaced(module: nn.Module) -> str | None:
    """Who replaced the forward of the module, by other means than hooks of accelerate or diffusers; None if nobody."""
    owner = next(kind for kind in type(module).__mro__ if "forward" in vars(kind))
    function = vars(owner)["forward"]
    if getattr(function, "__module__", owner.__module__) != owner.__module__:
        return _described(function)
    bottom = module.forward
    for slot in _inwards(module, bottom):
        bottom = _value(slot)
    return None if bottom == own_method(module, "forward") else _described(bottom)


def _described(method: Any) -> str:
    """Tell where a function was written, whatever name it bears."""
    method = getattr(method, "func", method)
    function = getattr(method, "__func__", method)
    if not inspect.isfunction(function):
        return repr(method)
    return f"{function.__globals__['__name__']}.{function.__code__.co_qualname}"


def _slots(module: nn.Module) -> Iterator[Slot]:
    """Find every place that keeps a method of the module: its attributes, hooks of diffusers, and what these keep."""
    registry = getattr(module, "_diffusers_hook", None)
    starts: list[Slot] = [(module, name) for name, value in vars(module).items() if callable(value)]
    starts += [slot for reference in getattr(registry, "_fn_refs", ()) for slot in _reference_slots(reference)]
    seen: set[tuple[int, str]] = set()
    for start in starts:
        for holder, name in (start, *_inwards(module, _value(start))):
            if (id(holder), name) not in seen:
                seen.add((id(holder), name))
                yield holder, name


def _inwards(module: nn.Module, method: Any) -> Iterator[Slot]:
    """Walk from a method of the module to the one it calls, and so on."""
    seen: set[tuple[int, str]] = set()
    slot = _below(module, method)
    while slot is not None and (id(slot[0]), slot[1]) not in seen:
        seen.add((id(slot[0]), slot[1]))
        yield slot
        slot = _below(module, _value(slot))


def _below(module: nn.Module, method: Any) -> Slot | None:
    """Find where a method keeps the one it calls, if it is a stand-in or what accelerate or diffusers put there."""
    if isinstance(method, StandIn):
        return method, "inner"
    function = getattr(method, "func", None) if isinstance(method, functools.partial) else None
    if not inspect.isfunction(function):
        return None
    if function.__module__ == "accelerate.hooks":
        return (module, "_old_forward") if "_old_forward" in vars(module) else None
    if function.__module__ != HookFunctionReference.__module__:
        return None
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    reference = next((value for value in cells if isinstance(value, HookFunctionReference)), None)
    return None if reference is None else _reference_slots(reference)[0]


def _reference_slots(reference: HookFunctionReference) -> list[Slot]:
    """Find the slot that leads inwards."""
    return [(reference, "forward" if reference.original_forward is None else "original_forward")]


def _value(slot: Slot) -> Any:
    return getattr(*slot)
