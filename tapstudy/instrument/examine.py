"""What is wrong with a row of the adapter table, found without skipping anything: names, streams, places."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.idle import idle_modules
from tapstudy.instrument.latent import from_tokens, misfit, read_latent, to_tokens
from tapstudy.instrument.layouts import Grid
from tapstudy.instrument.tokens import ImageTokens

Inputs = Mapping[str, Any]
FIRST, TAIL = "the first block", "the tail"


def unknown_names(model: nn.Module, adapter: Adapter, inputs: Inputs) -> list[str]:
    """Parts and arguments that the row names and the model lacks, or that cannot be what the row says."""
    return [*_unknown_modules(model, adapter), *_unknown_arguments(model, adapter, inputs)]


def _unknown_modules(model: nn.Module, adapter: Adapter) -> Iterator[str]:
    named: list[tuple[str, Callable[[], Any]]] = [
        *((f"blocks {path!r}", lambda path=path: model.get_submodule(path)) for path in adapter.blocks),
        (f"tail {adapter.tail!r}", lambda: model.get_submodule(adapter.tail)),
        *((f"refiners {path!r}", lambda path=path: model.get_submodule(path)) for path in adapter.refiners),
        *((f"idle {path!r}", lambda path=path: idle_modules(model, [path])) for path in adapter.idle),
    ]
    faults = []
    for name, look in named:
        try:
            look()
        except (AttributeError, ValueError) as error:
            faults.append(f"{name}: {error}")
    yield from faults
    if faults:
        return
    blocks, tails = adapter.modules(model)
    for path in adapter.blocks:
        if not any(True for _ in model.get_submodule(path).children()):
            yield f"blocks {path!r}: there are none"
    for block, block_list in blocks:
        try:
            block.get_submodule(adapter.attention)
        except AttributeError as error:
            yield f"attention {adapter.attention!r} of {adapter.blocks[block_list]}: {error}"
            return
    inside = {module for block, _ in blocks for module in block.modules()}
    if len({block for block, _ in blocks}) < len(blocks):
        yield f"blocks {adapter.blocks}: a list is named twice"
    if not tails or inside & {*tails}:
        yield f"tail {adapter.tail!r}: it must be a module behind the blocks"
    needed = {block for block, _ in blocks} | {block.get_submodule(adapter.attention) for block, _ in blocks} | {*tails}
    for path, module in idle_modules(model, adapter.idle).items():
        if needed & {*module.modules()}:
            yield f"idle {path!r}: a block, its attention or the tail is in it"


def _unknown_arguments(model: nn.Module, adapter: Adapter, inputs: Inputs) -> Iterator[str]:
    known = set(inspect.signature(type(model).forward).parameters) - {"self"}
    moving = {"latent": adapter.latent, "timestep": adapter.timestep}
    for what, name in moving.items():
        if name not in known:
            yield f"{what} {name!r}: forward has no such argument, only {', '.join(sorted(known))}"
        elif inputs.get(name) is None:
            yield f"{what} {name!r}: check was given no such input"
    if adapter.timestep != "timestep" and "timestep" in known:
        yield f"timestep {adapter.timestep!r}: forward has an argument 'timestep'"
    timestep = inputs.get(adapter.timestep)
    if timestep is not None and not (isinstance(timestep, float | int) or _is_tensor(timestep, most=2)):
        yield f"timestep {adapter.timestep!r}: neither a number nor one per sample or token"
    if len({*moving.values()}) < 2:
        yield f"latent and timestep are both {adapter.latent!r}"
    if adapter.key in moving.values():
        yield f"key {adapter.key!r}: it changes from step to step, so every call would be a context of its own"
    elif adapter.key not in known:
        others = sorted(known - {*moving.values(), "return_dict", "kwargs"})
        if others:  # else there is no conditioning
            yield f"key {adapter.key!r}: forward has no such argument to tell guidance branches apart, but {others}"
    elif not _tells_apart(inputs.get(adapter.key), inputs.get(adapter.latent)):
        yield f"key {adapter.key!r}: check was given no conditioning of this name, with an entry for every sample"


def _is_tensor(value: Any, *, most: int) -> bool:
    return isinstance(value, Tensor) and value.ndim <= most


def _tells_apart(value: Any, latent: Any) -> bool:
    """Tell whether a value can be conditioning: one entry per sample, more than a number or else a label."""
    if not isinstance(value, Tensor | list | tuple) or (latent is not None and len(value) != len(latent)):
        return False
    return not (isinstance(value, Tensor) and value.ndim < 2 and value.is_floating_point())


# Streams


def stray_streams(model: nn.Module, adapter: Adapter, inputs: Inputs) -> list[str]:
    """Lists whose blocks do not return the image stream where the row says."""
    blocks, _ = adapter.modules(model)
    numbers = dict(blocks)
    stray: set[int] = set()
    left: Any = None  # what the block before returned; held until the next one runs, so that addresses stay its own

    def enter(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal left
        hidden = args[0] if args else kwargs.get("hidden_states")
        if left is not None and left[0] == numbers[block]:
            _, output, stream = left
            other = [part for place, part in enumerate(output) if place != stream]
            if any(part is hidden for part in other) and output[stream] is not hidden:
                stray.add(numbers[block])
        left = None

    def leave(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        nonlocal left
        hidden = args[0] if args else kwargs.get("hidden_states")
        number = numbers[block]
        stream = adapter.streams[number]
        if isinstance(output, tuple) != (stream is not None) or (stream is not None and not -1 < stream < len(output)):
            stray.add(number)
        elif stream is not None:
            left = number, output, stream
            if getattr(output[stream], "shape", None) != getattr(hidden, "shape", None):
                stray.add(number)
        elif getattr(output, "shape", None) != getattr(hidden, "shape", None):
            stray.add(number)

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True) for block in numbers]
    handles += [block.register_forward_hook(leave, with_kwargs=True) for block in numbers]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [
        f"blocks of {adapter.blocks[number]} do not return the image stream where the adapter's streams "
        f"{adapter.streams} say"
        for number in sorted(stray)
    ]


# Places


def misplaced(model: nn.Module, adapter: Adapter, inputs: Inputs) -> list[str]:
    """Find tokens that are not where the row says: one is changed in the latent, and must be the one that changes.

    Looked at are the input of the first block, the attention input of the first block of every list, and the tail's.
    """
    arguments = inspect.signature(type(model).forward).bind(model, **inputs).arguments
    try:
        grid = adapter.grid(model, arguments)
        if len(grid) != 3 or not all(isinstance(count, int) and count > 0 for count in grid):
            return [f"the token grid must be three positive integers, got {grid!r}"]
        fault = misfit(model, adapter, arguments)
        latent = read_latent(inputs[adapter.latent])
        tokens = to_tokens(latent, grid, adapter.channel_dim)  # (B, N, patch)
        places = {place: ImageTokens(prod(grid), start) for place, start in _starts(adapter, arguments).items()}
    except Exception as error:  # whatever functions of somebody's row may raise
        return [f"the tokens cannot be found: {type(error).__name__}: {error}"]
    if fault is not None:
        return [fault]
    timestep = inputs[adapter.timestep]
    if isinstance(timestep, Tensor) and timestep.ndim == 2 and timestep.shape[1] not in (1, prod(grid)):
        return [f"timestep {adapter.timestep!r}: {timestep.shape[1]} per sample, for {prod(grid)} tokens"]
    before = _seen(model, adapter, inputs)
    faults = []
    for place, image in places.items():
        if place not in before:
            faults.append(f"{place} is not given a hidden state (batch, token, channel)")
        elif not image.fit(before[place]):
            faults.append(f"no room for a token grid of {grid} in {place}, {tuple(before[place].shape)}")
    return faults or [*_untimed(model, adapter, inputs, before), *_moved(model, adapter, inputs, tokens, grid, places)]


def _starts(adapter: Adapter, arguments: Inputs) -> dict[str, Any]:
    attentions = {
        f"the attention of {name}": adapter.start(index, arguments) for index, name in enumerate(adapter.blocks)
    }
    return {FIRST: adapter.start(0, arguments), **attentions, TAIL: adapter.start(0, arguments)}


def _seen(model: nn.Module, adapter: Adapter, inputs: Inputs) -> dict[str, Tensor]:
    """Return what enters those places in one call of the model, (batch, sequence, channel) each."""
    blocks, tails = adapter.modules(model)
    firsts = {index: block for block, index in reversed(blocks)}
    modules: list[tuple[str, nn.Module]] = [(FIRST, blocks[0][0])]
    modules += [
        (f"the attention of {adapter.blocks[index]}", block.get_submodule(adapter.attention))
        for index, block in firsts.items()
    ]
    modules += [(TAIL, tail) for tail in tails]
    found: dict[str, Tensor] = {}

    def look(place: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering = args[0] if args else kwargs.get("hidden_states")
        if isinstance(entering, Tensor) and entering.ndim == 3 and place not in found:
            found[place] = entering.clone()  # the model may go on to write into it

    handles = [
        module.register_forward_pre_hook(
            lambda _module, args, kwargs, place=place: look(place, args, kwargs), with_kwargs=True
        )
        for place, module in modules
    ]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _untimed(model: nn.Module, adapter: Adapter, inputs: Inputs, before: Mapping[str, Tensor]) -> Iterator[str]:
    timestep, place = inputs[adapter.timestep], f"the attention of {adapter.blocks[0]}"
    if torch.equal(before[place], before[FIRST]):
        yield f"attention {adapter.attention!r}: its input is that of the block, not the modulated one"
    try:
        after = _seen(model, adapter, {**inputs, adapter.timestep: _another_timestep(timestep)})
    except Exception as error:  # an argument that decides shapes, say
        yield f"timestep {adapter.timestep!r}: the model cannot run with half of it ({type(error).__name__}: {error})"
        return
    if torch.equal(after[place], before[place]) and not torch.equal(after[TAIL], before[TAIL]):
        yield f"timestep {adapter.timestep!r}: half of it makes no difference to {place}"


def _moved(
    model: nn.Module,
    adapter: Adapter,
    inputs: Inputs,
    tokens: Tensor,
    grid: Grid,
    places: Mapping[str, ImageTokens],
) -> Iterator[str]:
    """Places where another token than the one that was changed in the latent changes most, relative to its size."""
    before = _seen(model, adapter, inputs)
    count = prod(grid)
    tried = sorted({0, 1, grid[2], grid[1] * grid[2], count // 2, count - 1} & {*range(count)})
    hits = dict.fromkeys(places, 0)
    for token in tried:
        change = torch.zeros_like(tokens)
        change[:, token] = torch.linspace(-3, 3, tokens.shape[-1]).to(tokens) * tokens.std()
        after = _seen(model, adapter, _moved_latent(adapter, inputs, change, grid))
        for place, image in places.items():
            old, new = (image.take(seen[place]).float() for seen in (before, after))  # (B, N, D)
            size = torch.linalg.vector_norm(old, dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
            most = (torch.linalg.vector_norm(new - old, dim=-1) / size).argmax(dim=1)  # (B,)
            hits[place] += bool((most == token).all())
    for place, hit in hits.items():
        # until tokens are mixed by attention nothing else may change; later they answer most to what they began with
        exact = place in (FIRST, f"the attention of {adapter.blocks[0]}") and not adapter.refiners
        if hit < len(tried) and (exact or 2 * hit <= len(tried)):
            yield (
                f"of {len(tried)} tokens of the latent only {hit} are found at their place in {place}, with a grid of "
                f"{grid}: grid, channel_dim or image_start is wrong"
            )


def _moved_latent(adapter: Adapter, inputs: Inputs, change: Tensor, grid: Grid) -> dict[str, Any]:
    """Return the inputs with some patches of the latent changed, (batch, token, patch)."""
    given = inputs[adapter.latent]
    form = read_latent(given)
    moved = from_tokens(change, grid, channel_dim=adapter.channel_dim, shape=form.shape) + form
    if isinstance(given, Tensor):
        return {**inputs, adapter.latent: moved}
    samples = [[*old[:-1], new] if isinstance(old, list) else new for old, new in zip(given, moved, strict=True)]
    return {**inputs, adapter.latent: samples}


def _another_timestep(timestep: Any) -> Any:
    """Half of it, also where it is an integer."""
    if isinstance(timestep, Tensor) and not timestep.is_floating_point():
        return timestep // 2
    return timestep / 2
