"""Full passes of a pipeline's transformers: watched while it samples, and run again at other times."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.driver import timestep_value
from tapstudy.instrument.handle import Handle, apply_policy, find_transformers
from tapstudy.instrument.latent import Form
from tapstudy.policies.full import FullPolicy

QUANTITIES = ("probe", "residual", "output")


@dataclass(frozen=True)
class FullPass:
    """What one full pass was given and what it made.

    Attributes:
        transformer, context: names of the component and of the guidance branch.
        timestep: as the model was told it, the largest in the batch.
        features: the modulated input of the first block and the hidden residual (batch, token, channel), both of the
            image's tokens, and the output (batch, ...), by the names in `QUANTITIES`. They belong to the model.
    """

    transformer: str
    context: str
    timestep: float
    features: dict[str, Tensor]
    arguments: tuple[tuple[Any, ...], dict[str, Any]]


class FullPasses:
    """The watched transformers.

    Attributes:
        count: full passes so far.
    """

    def __init__(self, models: dict[str, tuple[nn.Module, Adapter]], handle: Handle) -> None:
        self.count = 0
        self._models, self._handle = models, handle
        self._event: StepEvent | None = None
        self._listener: Callable[[FullPass], None] = lambda _: None
        handle.listen(self._remember)

    def run(self, sample: Callable[[], Any], listener: Callable[[FullPass], None]) -> None:
        """Call `sample`, which runs the pipeline, and tell `listener` of every pass."""
        self._listener = listener
        try:
            sample()
        finally:
            self._listener = lambda _: None

    def kept(self, one: FullPass) -> FullPass:
        """Return a pass whose arguments may be kept: the sampling loop will not write into them."""
        args, kwargs = one.arguments
        arguments = tuple(_copy(value) for value in args), {name: _copy(value) for name, value in kwargs.items()}
        return FullPass(one.transformer, one.context, one.timestep, {}, arguments)

    @torch.no_grad()
    def again(self, one: FullPass, offset: float) -> dict[str, Tensor]:
        """Return the features of a kept pass at a timestep moved by `offset`, in the units the model is told it in.

        Integer and half-precision timesteps are given in single precision.
        """
        model, adapter = self._models[one.transformer]
        args, kwargs = one.arguments
        given = _bound(model, args, kwargs)
        # leave out of the signature what the pipeline left out
        arguments = {**given, adapter.timestep: _moved(given[adapter.timestep], offset)}
        found: list[FullPass] = []
        self._handle.reset()
        self.run(lambda: model(**{name: _copy(value) for name, value in arguments.items()}), found.append)
        return found[0].features

    def _remember(self, event: StepEvent) -> None:
        self._event = event

    def _finished(self, name: str, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        """Tell the listener of a finished forward of a watched transformer."""
        self.count += 1
        event, self._event = self._event, None
        if event is None or event.probe is None or event.residual is None:
            return  # a pass that an adapter lets by, with layers left out, say
        timestep = _bound(model, args, kwargs)[self._models[name][1].timestep]
        features = {"probe": event.probe, "residual": event.residual, "output": Form.read(output)[0]}
        self._listener(
            FullPass(name, event.context, timestep_value(timestep), features, (args, kwargs))
        )  # fmt: skip


@contextmanager
def full_passes(pipe: Any) -> Iterator[FullPasses]:
    """Watch every supported transformer of a pipeline; the model is as it was afterwards."""
    with apply_policy(pipe, FullPolicy(needs_probe=True)) as handle:
        models = find_transformers(pipe)
        passes = FullPasses(models, handle)
        hooks = [
            model.register_forward_hook(partial(passes._finished, name), with_kwargs=True)
            for name, (model, _) in models.items()
        ]
        try:
            yield passes
        finally:
            for hook in hooks:
                hook.remove()


def _bound(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a forward by name."""
    bound = dict(inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments)
    del bound["self"]
    return bound


def _moved(timestep: Any, offset: float) -> Tensor:
    """Tokens of a given picture stay at time 0 where others are noisy."""
    given = torch.as_tensor(timestep)
    given = given.to(torch.promote_types(given.dtype, torch.float32))
    return torch.where((given != 0) | (given == 0).all(), given + offset, given)


def _copy(value: Any) -> Any:
    """Tensors in new memory, alone, in lists and in dicts."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_copy(item) for item in value)
    return {key: _copy(item) for key, item in value.items()} if type(value) is dict else value
