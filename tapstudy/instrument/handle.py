"""Put a policy on a pipeline or a transformer, read what happened, take it off again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from tapstudy.instrument.adapters import Adapter, find_adapter, why_unsupported
from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.flops import Passes
from tapstudy.instrument.instrument import Instrument
from tapstudy.instrument.presence import refuse_cuda_graphs
from tapstudy.instrument.summary import ContextSummary, Summary
from tapstudy.policies.base import Policy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.tap import TAPPolicy


def apply_policy(target: Any, policy: Policy, *, shadow: bool = False) -> Handle:
    """Run every supported transformer of `target` under `policy` until the handle is removed.

    Calls may be made with gradients, without, or in inference mode, each step in its own way. A full step has the
    gradients of the model. At a skip step they flow through what ran, embedding and tail, and end at the prediction:
    what histories keep is detached. Under autocast the policy computes in its own precision. Where an argument that
    brings tensors into the model comes or goes between steps, such as the residuals of a ControlNet that ends midway,
    the history starts anew with a full step.

    Args:
        target: a diffusers pipeline, or a transformer. On a pipeline new runs are recognised by themselves; on a bare
            transformer call `handle.reset()` before a run that starts at the timestep where the last one stopped.
        policy: a policy that has seen nothing; every context of every transformer gets a copy.
        shadow: also run a full pass beside every prediction of the whole residual, so that listeners learn the true
            one. Saves nothing.

    Raises:
        TypeError: no supported transformer in `target`.
        RuntimeError: the transformer already runs under a policy or a diffusers cache.
        ValueError: `probe_depth` beyond the last block.
    """
    if not isinstance(policy, Policy):
        raise TypeError(f"apply_policy needs a Policy object, got {policy!r}")
    transformers = find_transformers(target)
    instruments: dict[str, Instrument] = {}
    try:
        for name, (model, adapter) in transformers.items():
            instrument = Instrument(model, adapter, policy, target=target, shadow=shadow)
            instrument.attach()
            instruments[name] = instrument
    except BaseException:
        for instrument in instruments.values():
            instrument.detach()
        raise
    return Handle(instruments, target)


def apply_tap(target: Any, config: TAPConfig | None = None, *, compile: bool = False) -> Handle:
    """Run TAP on every supported transformer of a pipeline (or on a transformer); see `TAPConfig`, `apply_policy`.

    `compile` as in `TAPPolicy`.
    """
    if config is not None and not isinstance(config, TAPConfig):
        raise TypeError(f"apply_tap needs a TAPConfig, got {config!r}; write apply_tap(pipe, TAPConfig(interval=6))")
    return apply_policy(target, TAPPolicy(config, compile=compile))


def find_transformers(target: Any) -> dict[str, tuple[nn.Module, Adapter]]:
    """Return every supported transformer of a pipeline (Wan 2.2 has two) by component name, with its adapter.

    Raises TypeError when there is none.
    """
    if isinstance(target, nn.Module):
        modules = {type(target).__name__: target}
    else:
        components: dict[str, Any] = getattr(target, "components", None) or {}
        modules = {name: module for name, module in components.items() if isinstance(module, nn.Module)}
    for module in modules.values():
        refuse_cuda_graphs(module)
    # torch.compile(model) is a wrapper that calls the model it holds
    modules = {name: getattr(module, "_orig_mod", module) for name, module in modules.items()}
    found = {
        name: (module, adapter) for name, module in modules.items() if (adapter := find_adapter(module)) is not None
    }
    if not found:
        classes = {type(module).__name__ for module in modules.values()} or {type(target).__name__}
        raise TypeError(why_unsupported(type(target).__name__, classes))
    return found


class Handle(AbstractContextManager["Handle"]):
    """The policy in force on a pipeline or transformer. As a context manager it removes itself."""

    def __init__(self, instruments: dict[str, Instrument], target: Any) -> None:
        self._instruments, self._target = instruments, target
        self._last: Summary | None = None

    def __exit__(self, *_: object) -> None:
        self.remove()

    def summary(self) -> Summary:
        """Return what happened in the last (or current) run. Remains readable after `remove`.

        A run that the policy had no part in has no contexts; notes say what it missed, and why.
        """
        if self._last is not None:
            return self._last
        # of two transformers that share the steps, one may have had no part in the last run
        took_part = {name: instrument for name, instrument in self._instruments.items() if not instrument.overtaken}
        notes = [
            f"{name}: {reason}"
            for name, instrument in self._instruments.items()
            for reason in (self._swapped(name), instrument.presence.absence)
            if reason is not None
        ]
        if not took_part:
            notes.append("the scheduler has begun another run, in which no call has come to the policy yet")
        contexts = [
            ContextSummary.of(name, run)
            for name, instrument in took_part.items()
            for run in instrument.runs.values()
        ]  # fmt: skip
        passes = [Passes.of(instrument, run) for instrument in took_part.values() for run in instrument.runs.values()]
        return Summary(contexts, notes, passes=passes)

    def _swapped(self, name: str) -> str | None:
        if isinstance(self._target, nn.Module):
            return None
        model, now = self._instruments[name].model, self._target.components.get(name)
        if now is model or (isinstance(now, nn.Module) and any(part is model for part in now.modules())):
            return None
        return (
            f"the pipeline has another one now ({type(now).__name__}), which runs without the policy: remove() this "
            "handle and apply the policy anew"
        )

    def reset(self) -> None:
        """Forget the current run: the next call of a transformer is step 0.

        Raises RuntimeError from inside a pass, as `remove`.
        """
        self._between_passes("reset")
        for instrument in self._instruments.values():
            instrument.reset()

    def remove(self) -> None:
        """Take the policy off; the model is again exactly what it was. Safe to call twice.

        Raises RuntimeError from inside a pass of the transformer, which then cannot go on.
        """
        self._between_passes("remove")
        if self._last is None:
            self._last = self.summary()
        for instrument in self._instruments.values():
            instrument.detach()

    def _between_passes(self, method: str) -> None:
        """Refuse what changes a pass while one is under way in this thread; wait for those of others."""
        for instrument in self._instruments.values():
            if instrument.in_a_pass():
                raise RuntimeError(
                    f"a pass of this {type(instrument.model).__name__} is under way, and half of it cannot be "
                    f"otherwise than the rest: call {method}() when it is over, between steps or in a listener"
                )

    def listen(self, listener: Callable[[StepEvent], None]) -> None:
        """Call `listener` after every pass of every transformer, with what happened in it.

        Raises RuntimeError from inside a pass, as `remove`.
        """
        self._between_passes("listen")
        for instrument in self._instruments.values():
            instrument.listeners.append(listener)

    def record(
        self,
        recorder: Callable[[StepEvent], None],
        *,
        depths: Sequence[int] = (),
        modules: Mapping[str, str] | None = None,
        latent: bool = False,
        transformer: str | None = None,
    ) -> None:
        """Like `listen`, to one transformer, with more in the events.

        Args:
            depths: blocks whose probes they carry.
            modules: name -> path in the transformer, of modules whose outputs they carry.
            latent: whether they carry the latent and its residual.

        Raises:
            ValueError: no such transformer, several and none named, a depth beyond the last block, or no such module.
            RuntimeError: inside a pass, as `remove`.
        """
        self._between_passes("record")
        names = list(self._instruments)
        if transformer is None and len(names) > 1:
            raise ValueError(f"the pipeline has several transformers, say which one to record: {names}")
        if transformer is not None and transformer not in names:
            raise ValueError(f"no transformer {transformer!r}: there are {names}")
        instrument = self._instruments[transformer or names[0]]
        instrument.also_watch(depths, modules=modules or {}, latent=latent)
        instrument.listeners.append(recorder)

    @contextmanager
    def context(self, name: str) -> Iterator[None]:
        """Name the guidance branch of the calls in the block, for custom loops that make several calls per step."""
        outer = [(names, names.given) for names in (one.threads.names for one in self._instruments.values())]
        for names, _ in outer:
            names.given = name
        try:
            yield
        finally:
            for names, before in outer:
                names.given = before
