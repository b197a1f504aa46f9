"""Groups of blocks, and attention and feed-forward modules, that a policy may leave out.

The hooks stand inside the others: a block that a skip step passes over never comes to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.call import Call, Host
from tapstudy.instrument.hooks import in_python
from tapstudy.instrument.places import Hook, Method
from tapstudy.instrument.token_runs import token_hooks
from tapstudy.policies.base import Policy, apart
from tapstudy.policies.decision import Layout, Part, Site, Value
from tapstudy.policies.parts import PartsPolicy, each

_CROSS = ("attn2", "cross_attn", "cross_attention")
_FEED_FORWARD = ("ff", "ffn", "ff_context", "feed_forward", "mlp", "img_mlp", "txt_mlp", "txt_ff", "ff_i", "ff_t")
_NO_BRANCH = ("norm", "adaLN", "mod", "img_mod", "txt_mod", "scale_shift")  # how names of modulation begin


class Modules(NamedTuple):
    """Those of one part.

    Attributes:
        answering: give what is kept.
        silent: what they give is read by none but those.
    """

    answering: tuple[nn.Module, ...]
    silent: tuple[nn.Module, ...] = ()


def modules_of(block: nn.Module, adapter: Adapter) -> dict[Site, Modules]:
    """Find the modules of a block by kind, in the order in which they run."""
    within, _, name = adapter.attention.rpartition(".")
    holder = block.get_submodule(within)
    children = {name: child for name, child in holder.named_children() if child is not None}
    attention = [children[name]] if name in children else []
    cross = [children[other] for other in _CROSS if other in children and other != name]
    if getattr(block, "use_dual_attention", False):  # of the image, beside the joint one
        attention, cross = [*attention, *cross], []
    forward = [children[other] for other in _FEED_FORWARD if other in children]
    found: dict[Site, Modules] = {
        "attention": Modules((*attention,)),
        "cross_attention": Modules((*cross,)),
        "feed_forward": Modules((*forward,)),
    }
    if "proj_mlp" in children and "proj_out" in children:
        found["joint"] = Modules((children["proj_out"],), (*attention, children["proj_mlp"]))
    return {site: modules for site, modules in found.items() if modules.answering}


def layout_of(model: nn.Module, adapter: Adapter) -> Layout:
    """Tell what a transformer can be cut into.

    Two streams that are kept apart may pass from list to list. Where blocks read what others gave before them (long
    skips), each is a stack of its own: the blocks inside a group that is left out give nothing.
    """
    blocks, _ = adapter.modules(model)
    if any("skip" in inspect.signature(type(block).forward).parameters for block, _ in blocks):
        stacks = [*range(len(blocks))]
    else:
        stacks = [index if (stream := adapter.streams[index]) is None else -1 - stream for _, index in blocks]
    return Layout(tuple(tuple(modules_of(block, adapter)) for block, _ in blocks), tuple(stacks))


def watched_parts(policy: Policy, layout: Layout) -> tuple[Part, ...]:
    """List the parts that the policy may leave out of a transformer."""
    return policy.parts(layout) if isinstance(policy, PartsPolicy) else ()


def part_hooks(host: Host, layout: Layout) -> Iterator[tuple[nn.Module, Hook]]:
    """Make the hooks that a policy's decisions need.

    Raises:
        ValueError: the policy keeps modules, and a block holds one of a kind that nobody knows; or it names tokens,
            and nobody knows how those of the model run apart.
    """
    if host.policy.runs_tokens:
        yield from token_hooks(host)
    parts = watched_parts(host.policy, layout)
    blocks, _ = host.adapter.modules(host.model)
    for index, (block, block_list) in enumerate(blocks):
        groups = tuple(part for part in parts if part.site == "block" and part.first <= index < part.end)
        if groups:
            yield block, GroupHook(host, index, groups, host.adapter.streams[block_list])
        own = [part for part in parts if part.site != "block" and part.first == index]
        if own:
            yield from _module_hooks(host, block, own)


def _module_hooks(host: Host, block: nn.Module, parts: list[Part]) -> Iterator[tuple[nn.Module, Hook]]:
    found = modules_of(block, host.adapter)
    _refuse_unknown(block, host.adapter, found)
    answering = {module: part for part in parts for module in found[part.site].answering}
    silent = {module: part for part in parts for module in found[part.site].silent}
    paths = {module: path for path, module in host.model.named_modules()}
    for module in {**silent, **answering}:
        yield module, ModuleHook(host, paths[module], answering.get(module), silent.get(module))


def _refuse_unknown(block: nn.Module, adapter: Adapter, found: dict[Site, Modules]) -> None:
    known = {module for modules in found.values() for module in (*modules.answering, *modules.silent)}
    holder = block.get_submodule(adapter.attention.rpartition(".")[0])
    for name, child in holder.named_children():
        layers = sum(isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d) for layer in child.modules())
        if layers > 1 and child not in known and not name.startswith(_NO_BRANCH):
            raise ValueError(
                f"{type(block).__name__}.{name} is neither attention nor feed-forward layer by its name, so it would "
                "run where its block's modules are left out: use a policy that leaves out whole blocks"
            )


class Nested:
    """Two hooks on one method: the inner one is what the outer one calls."""

    def __init__(self, outer: Hook, inner: Hook) -> None:
        self.outer, self.inner = outer, inner

    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Answer a call of the method."""
        return self.outer.run(lambda *given, **named: self.inner.run(inner, given, named), args, kwargs)


class ModuleHook:
    """On an attention or feed-forward module.

    Args:
        path: in the model.
        answers: the part whose output it gives.
        silent: the part that this module runs for, and gives no output of.
    """

    def __init__(self, host: Host, path: str, answers: Part | None, silent: Part | None) -> None:
        self.host, self.path, self.answers, self.silent = host, path, answers, silent

    @in_python(recursive=False)
    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module and let the policy see what it gives, or answer for it."""
        call = self.host.call
        if call is None or call.state == "skip":
            return inner(*args, **kwargs)
        left = call.decision.parts if call.state == "partial" else {}
        if self.silent in left:
            return call.run.blanks[self.path][0]
        part = self.answers
        slot = -1
        if part is not None:
            slot = call.slots[part]
            call.slots[part] += 1
        if part is not None and part in left:
            return _answer(call, part, slot, lambda *given: inner(*given, **kwargs), args, left[part])
        output = inner(*args, **kwargs)
        if part is not None:
            _tell(call, part, slot, output)
        if self.silent is not None and call.state != "partial":
            call.outputs[self.path] = [output]
        return output


class GroupHook:
    """On a block of some groups of blocks.

    A group that is left out hands the tokens that enter it on from block to block; behind its last block they are what
    entered the first, and what the group adds. So whatever the model adds between blocks, such as the residuals of a
    ControlNet, is part of that.

    Args:
        index: number of the block.
        groups: that it belongs to.
        stream: position of the image stream in the tuple the block returns, None for that tensor alone.
    """

    def __init__(self, host: Host, index: int, groups: tuple[Part, ...], stream: int | None) -> None:
        self.host, self.index, self.groups, self.stream = host, index, groups, stream

    @in_python(recursive=False)
    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block and let the policy see what its groups add, or answer for it."""
        call = self.host.call
        if call is None or call.state == "skip":
            return inner(*args, **kwargs)
        left = call.decision.parts if call.state == "partial" else {}
        entering = self._entering(args, kwargs)
        call.entered |= {group: entering for group in self.groups if group.first == self.index}
        for group in self.groups:
            if group in left:
                return self._pass(call, group, entering)
        output = inner(*args, **kwargs)
        for group in self.groups:
            whole = group in call.entered and not any(group.meets(other) for other in left)
            if group.end == self.index + 1 and whole:
                _tell(call, group, 0, self._added(output, *call.entered[group]))
        return output

    def _entering(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if self.stream is None:
            return hidden, None
        return hidden, args[1] if len(args) > 1 else kwargs.get("encoder_hidden_states")

    def _pass(self, call: Call, group: Part, entering: tuple[Tensor, Tensor | None]) -> Any:
        if self.index + 1 < group.end:
            return self._leaving(*entering)
        policy = call.run.policy
        assert isinstance(policy, PartsPolicy)
        image, other = policy.predict_part(call.step, group, 0)
        before, beside = call.entered[group]
        return self._leaving(
            (before + image).to(before.dtype),
            None if other is None or beside is None else (beside + other).to(beside.dtype),
        )

    def _leaving(self, image: Tensor, other: Tensor | None) -> Any:
        return image if self.stream is None else (image, other) if self.stream == 0 else (other, image)

    def _added(self, output: Any, before: Tensor, beside: Tensor | None) -> Value:
        image, other = (output, None) if self.stream is None else (output[self.stream], output[1 - self.stream])
        return _minus(image, before), None if other is None or beside is None else _minus(other, beside)


def _minus(output: Tensor, before: Tensor) -> Tensor:
    """float32 (or better) keeps before + difference equal to the output when the model runs in bf16."""
    return output.detach().to(torch.promote_types(output.dtype, torch.float32)) - before.detach()


def _tell(call: Call, part: Part, slot: int, output: Value) -> None:
    policy = call.run.policy
    assert isinstance(policy, PartsPolicy)
    with apart():
        copy = each(lambda tensor: tensor.detach().clone(), output)
    policy.observe_part(call.step, part, slot, copy)


def _answer(
    call: Call, part: Part, slot: int, inner: Callable[..., Any], args: tuple[Any, ...], tokens: Tensor | None
) -> Value:
    """Give what the policy predicts, but for tokens of the image that run; they are the first module's."""
    policy = call.run.policy
    assert isinstance(policy, PartsPolicy)
    value = policy.predict_part(call.step, part, slot)
    if tokens is None or slot > 0:
        return value
    if not (args and isinstance(value, Tensor) and value.shape[1] == args[0].shape[1] == prod(call.grid)):
        raise RuntimeError(f"{part} takes more than the tokens of the image, so single ones cannot run there")
    tokens = tokens.to(value.device)
    value = value.index_copy(1, tokens, inner(args[0].index_select(1, tokens), *args[1:]).to(value.dtype))
    _tell(call, part, slot, value)
    return value
