"""FLOPs of a run, counted when somebody asks: its passes once more without values, on a copy on torch's meta device.

Convention: one multiply-add is two FLOPs; matrix products, convolutions and attention count, element-wise work does not
(torch's own counter).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any, NamedTuple, Self
from weakref import ReferenceType, WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.hooks import pass_through
from tapstudy.instrument.inputs import Inputs, model_on_meta
from tapstudy.instrument.instrument import Instrument
from tapstudy.instrument.latent import read_latent
from tapstudy.instrument.trajectory import ContextRun
from tapstudy.policies.base import Policy, Prediction, RunInfo

_known: WeakKeyDictionary[nn.Module, WeakKeyDictionary[Policy, dict[str, RunFlops]]] = WeakKeyDictionary()


class RunFlops(NamedTuple):
    """Hold the FLOPs of a run, and of as many full passes without a policy."""

    spent: int
    in_full: int


def flop_counter() -> FlopCounterMode:
    """Return torch's counter, which does not know its own attention of the CPU by itself."""
    return FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    )


def _attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *_: Any, **__: Any) -> int:
    """Count the two products of attention, from shapes (batch, head, token, channel)."""
    return int(sdpa_flop_count(query, key, value))


def count_flops(run: Callable[[], object]) -> int:
    """Count the FLOPs of everything `run` computes."""
    with flop_counter() as counter:
        run()
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class Passes:
    """Hold what the passes of one context were, without the values of any tensor.

    Attributes:
        model: of the instrument, if somebody still holds it.
        adapter, policy, shadow: likewise; the policy has seen nothing.
        kinds: "full", "skip", "partial" or "shadow", of every pass.
        inputs: of the model, one entry for every time that the history began.
    """

    model: ReferenceType[nn.Module]
    adapter: Adapter
    policy: Policy
    shadow: bool
    kinds: tuple[str, ...]
    inputs: tuple[Inputs, ...]

    @classmethod
    def of(cls, instrument: Instrument, run: ContextRun) -> Self:
        """Take what a context has run so far."""
        return cls(
            ref(instrument.model), instrument.adapter, instrument.policy, instrument.shadow, tuple(run.kinds),
            tuple(run.inputs),
        )  # fmt: skip

    def flops(self) -> RunFlops:
        """Count them, once for all runs that are alike; the model itself is left alone, and so is its device.

        What the policy computes itself, which is little and not the same on every device, is left out.

        Raises:
            ReferenceError: the model is gone.
            Exception: whatever the model raises that reads values inside its forward pass, or that holds weights of a
                kind that the meta device does not know.
        """
        model = self.model()
        if model is None:
            raise ReferenceError("the model is gone; read flops_ratio while it is there")
        layers = [(name, *weight.shape) for name, weight in model.named_parameters()]
        key = f"{self.shadow} {self.kinds} {self.inputs} {layers}"
        known = _known.setdefault(model, WeakKeyDictionary()).setdefault(self.policy, {})
        if key not in known:
            # apart from what the calling thread has in force: a pipeline further up, autocast, gradients
            with ThreadPoolExecutor(1) as apart, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # said when it ran
                known[key] = apart.submit(self._count, model_on_meta(model)).result()
        return known[key]

    def _count(self, model: nn.Module) -> RunFlops:
        ends = [*(inputs.step for inputs in self.inputs[1:]), len(self.kinds)]
        full = [count_flops(partial(inputs.run, model)) for inputs in self.inputs]
        in_full = sum(one * (end - inputs.step) for one, inputs, end in zip(full, self.inputs, ends, strict=True))
        if self.inputs[0].info is None:  # passes that no history is about
            return RunFlops(in_full, in_full)
        if "partial" not in self.kinds:
            # blocks behind the probe add the same to every full pass: from here on they hand their input on
            blocks, _ = self.adapter.modules(model)
            for block, block_list in blocks[self.policy.probe_depth + 1 :]:
                block.forward = partial(_hand_on, self.adapter.streams[block_list])
        behind = [one - count_flops(partial(inputs.run, model)) for one, inputs in zip(full, self.inputs, strict=True)]
        spent = sum(self._spent(model, ends, behind))
        return RunFlops(spent, in_full)

    def _spent(self, model: nn.Module, ends: Sequence[int], behind: Sequence[int]) -> Iterator[int]:
        """Yield the FLOPs of every pass; one like an earlier one, with a history of the same size, is not run."""
        adapters = [_as_it_was(self.adapter, inputs) for inputs in self.inputs]
        beside: list[int] = []
        instrument = Instrument(model, adapters[0], self._as_it_decided(beside), shadow=self.shadow)
        instrument.attach()
        instrument.threads.names.given = "as it was"
        counted: dict[tuple[object, ...], int] = {}
        part = fulls = since = 0
        for step, kind in enumerate(self.kinds):
            run = next(iter(instrument.runs.values()), None)
            if step == ends[part]:
                part, fulls, instrument.adapter = part + 1, 0, adapters[part + 1]
                counted.clear()
            fulls, since = (fulls + 1, 0) if kind == "full" else (fulls, since + 1)
            key = (kind, min(fulls, 4), min(since, 2), run and run.policy.cache_bytes)
            if run is not None and key in counted and "partial" not in self.kinds:
                run.kinds.append(kind)
            else:
                if run is not None and step == self.inputs[part].step:
                    run.restart = "as it was"
                beside.clear()
                counted[key] = count_flops(partial(self.inputs[part].run, model)) - sum(beside)
            yield counted[key] + (0 if kind in ("skip", "partial") else behind[part])
        (last,) = instrument.runs.values()
        if tuple(last.kinds) != self.kinds:
            raise RuntimeError(f"it went otherwise: {''.join(last.kinds)}")

    def _as_it_decided(self, beside: list[int]) -> Policy:
        """Return the policy with what it decided in place of its decisions; `beside` gets what it computes itself."""
        kind: Any = type(self.policy)
        kinds, infos = self.kinds, [inputs.info or RunInfo() for inputs in self.inputs]

        def counted(method: str, *args: Any) -> Any:
            with flop_counter() as counter:
                found = getattr(super(Decided, args[0]), method)(*args[1:])
            beside.append(counter.get_total_flops())
            return found

        class Decided(kind):
            def begin(self, run: RunInfo) -> None:
                del run
                super().begin(infos.pop(0) if len(infos) > 1 else infos[0])

            def wants_full(self, step: int) -> bool:
                return kinds[step] == "full"

            def wants_full_given(self, step: int, probe: Tensor) -> bool:
                del step, probe
                return False

            def observe(self, step: int, probe: Tensor | None, residual: Tensor) -> None:
                counted("observe", self, step, probe, residual)

            def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
                found: Prediction = counted("predict", self, step, probe, truth)
                return found

            def skipped(self, step: int, probe: Tensor | None, prediction: Prediction) -> None:
                if not self.decides_by_probe:  # else it reads values, to decide by
                    counted("skipped", self, step, probe, prediction)

        found: Any = self.policy.fresh()
        found.__class__ = Decided
        if models := getattr(found, "models", ()):
            found.models = type(models)(model_on_meta(one) if isinstance(one, nn.Module) else one for one in models)
        decided: Policy = found
        return decided


def _hand_on(stream: int | None, *args: Any, **kwargs: Any) -> Any:
    return pass_through(stream, args, kwargs)


def _as_it_was(adapter: Adapter, inputs: Inputs) -> Adapter:
    """Return an adapter that tells what it told then: some rows read it from values."""
    first, probed, tail = inputs.starts
    lists = len(adapter.blocks)
    return replace(
        adapter,
        grid=lambda *_: inputs.grid,
        image_start=(lambda _: first, *[lambda _: probed] * (lists - 1)),
        tail_start=None if adapter.tail_start is None else lambda _: tail,
        references=lambda _, arguments: read_latent(arguments[adapter.latent]).shape[1] - prod(inputs.grid),
        bypass=None,
    )
