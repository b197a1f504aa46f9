"""Passes in which some tokens of the image run through the blocks, and the others do not.

The chosen tokens are cut out of the stream that enters the blocks, and of the tables of positions. In self-attention
they meet the keys and values of all tokens: of the others those that they had when they last ran. Attention is found
where torch computes it, in `scaled_dot_product_attention`. Behind the blocks the tokens are put back among those that
the policy predicts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from tapstudy.instrument.call import Call, Host
from tapstudy.instrument.hooks import in_python
from tapstudy.instrument.places import Hook, Method


@dataclass(frozen=True)
class TokenSpec:
    """Tell where the tokens of a transformer class are besides the stream, which must begin with those of the image.

    Args:
        text: where those of the text are among the keys of self-attention; None: not there.
        positions: argument of the blocks that holds tables of positions, of text and image where both are keys.
    """

    text: Literal["first", "last"] | None = None
    positions: str | None = None


# A row is right if a pass on the latent of the last full pass gives its tokens what that gave them: the tests ask.
SPECS = {
    "DiTTransformer2DModel": TokenSpec(),
    "FluxTransformer2DModel": TokenSpec("first", "image_rotary_emb"),
    "PixArtTransformer2DModel": TokenSpec(),
    "SD3Transformer2DModel": TokenSpec("last"),
    "WanTransformer3DModel": TokenSpec(positions="rotary_emb"),
}


class Restart(Exception):
    """Unwinds a block whose tokens were cut out after it had begun."""


def token_hooks(host: Host) -> Iterator[tuple[nn.Module, Hook]]:
    """Make the hooks for policies that name tokens.

    Raises:
        ValueError: nobody knows how tokens of this class run apart.
    """
    model = host.model
    spec = next((SPECS[base.__name__] for base in type(model).__mro__ if base.__name__ in SPECS), None)
    if spec is None:
        raise ValueError(
            f"{type(host.policy).__name__} names tokens, and nobody knows how those of {type(model).__name__} run "
            f"apart: use {', '.join(SPECS)}"
        )
    blocks, _ = host.adapter.modules(model)
    probe = host.policy.probe_kind if host.policy.needs_probe else None
    depth = 0 if probe in (None, "latent") else host.policy.probe_depth
    for index, (block, _) in enumerate(blocks[depth:], start=depth):
        yield block, CutHook(host, spec, block, probed=probe == "modulated" and index == depth)
    for index, (block, _) in enumerate(blocks):
        yield block.get_submodule(host.adapter.attention), AttentionHook(host, f"{index}", spec)
        if getattr(block, "use_dual_attention", False):
            yield block.get_submodule("attn2"), AttentionHook(host, f"{index} of the image", TokenSpec())


class CutHook:
    """On the probed block and those behind it: cuts the chosen tokens out of what they are given.

    Args:
        probed: the probe, of all tokens, is taken inside this block, which then begins anew.
    """

    def __init__(self, host: Host, spec: TokenSpec, block: nn.Module, *, probed: bool) -> None:
        self.host, self.spec, self.block, self.probed = host, spec, block, probed
        self._signature = inspect.signature(type(block).forward)

    @in_python(recursive=False)
    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the block on the tokens that run."""
        call = self.host.call
        if call is None or call.state in ("full", "skip"):
            return inner(*args, **kwargs)
        call.cuts = True
        if call.decision.tokens is None or (self.probed and not call.cut):
            try:
                return inner(*args, **kwargs)
            except Restart:
                pass
        given = self._signature.bind(self.block, *args, **kwargs)
        if not call.cut:
            hidden = given.arguments["hidden_states"]
            call.stream_length = hidden.shape[1]
            given.arguments["hidden_states"] = hidden.index_select(1, self._kept(call, hidden.device))
            call.cut = True
        if self.spec.positions is not None:
            given.arguments[self.spec.positions] = self._cut_table(call, given.arguments[self.spec.positions])
        _refuse_other_tables(call, given.arguments, self.spec)
        return inner(*given.args[1:], **given.kwargs)

    def _kept(self, call: Call, device: torch.device, *, before: int = 0) -> Tensor:
        """Return the places of the chosen tokens, and of all that are none of the image's, `before` it and behind."""
        tokens, count = call.decision.tokens, prod(call.grid)
        assert tokens is not None
        behind = torch.arange(before + count, before + call.stream_length, device=device)
        return torch.cat([torch.arange(before, device=device), before + tokens.to(device), behind])

    def _cut_table(self, call: Call, table: Any) -> Any:
        if isinstance(table, tuple | list):
            return type(table)(self._cut_table(call, part) for part in table)
        text = call.text_tokens or 0 if self.spec.text is not None else 0
        length = call.stream_length + text
        places = [dim for dim in range(table.ndim - 1) if table.shape[dim] == length]
        if len(places) != 1:
            raise RuntimeError(
                f"{type(self.host.model).__name__}: the {length} tokens were looked for in {self.spec.positions} of "
                f"shape {tuple(table.shape)}, and it has {len(places)} dimensions of that length"
            )
        return table.index_select(places[0], self._kept(call, table.device, before=text))


def _refuse_other_tables(call: Call, arguments: dict[str, Any], spec: TokenSpec) -> None:
    for name, value in arguments.items():
        per_token = isinstance(value, Tensor) and value.ndim > 3 and value.shape[1] == call.stream_length
        if per_token and name not in ("hidden_states", spec.positions):
            raise RuntimeError(
                f"{name} of shape {tuple(value.shape)} has a value for every token, which tokens that run apart cannot "
                "have: sample with one timestep for all tokens"
            )


class AttentionHook:
    """On self-attention: keeps keys and values, and gives those of all tokens to the ones that run.

    Args:
        key: of this module among others.
    """

    def __init__(self, host: Host, key: str, spec: TokenSpec) -> None:
        self.host, self.key, self.spec = host, key, spec

    @in_python
    def run(self, inner: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run the module with keys and values of all tokens."""
        call = self.host.call
        if call is None or call.state == "skip":
            return inner(*args, **kwargs)
        if call.decision.tokens is not None and call.cuts and not call.cut:
            raise Restart
        with _Attention(call, self.key, self.spec) as attention:
            output = inner(*args, **kwargs)
        if not attention.calls:
            raise RuntimeError(
                f"{type(self.host.model).__name__} computes attention elsewhere than in torch's "
                "scaled_dot_product_attention, where its keys and values could be kept: choose that backend"
            )
        return output


class _Attention(TorchFunctionMode):
    """Sees the calls of attention in one module."""

    def __init__(self, call: Call, key: str, spec: TokenSpec) -> None:
        super().__init__()
        self.call, self.key, self.spec, self.calls = call, key, spec, 0

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not scaled_dot_product_attention:
            return function(*args, **kwargs)
        named = dict(zip(("query", "key", "value"), args, strict=False)) | {
            name: kwargs.pop(name) for name in ("query", "key", "value") if name in kwargs
        }
        key, value = self._whole(named["key"], named["value"])
        return function(named["query"], key, value, *args[3:], **kwargs)

    def _whole(self, *now: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values, (batch, head, token, channel), of all tokens, and keep them."""
        name, call = (self.key, self.calls), self.call
        self.calls += 1
        tokens = call.decision.tokens
        if tokens is not None and call.cut:
            before, device = call.run.attended[name], now[0].device
            length = before[0].shape[-2]
            text = length - call.stream_length if self.spec.text == "first" else 0
            behind = torch.arange(text + prod(call.grid), length, device=device)
            index = torch.cat([torch.arange(text, device=device), text + tokens.to(device), behind])
            now = tuple(old.index_copy(-2, index, new) for old, new in zip(before, now, strict=True))
        call.run.attended[name] = (now[0].detach(), now[1].detach())
        return now[0], now[1]


def spread(call: Call, tail: Tensor, predict: Callable[[Call], Tensor]) -> Tensor:
    """Return what the tail shall see, (batch, sequence, channel), where it is given the tokens that ran.

    Where the residual is predicted in latent space, the others are as they entered the blocks, which nobody reads.
    """
    tokens, start = call.decision.tokens, call.start
    assert tokens is not None
    assert start is not None
    tokens = tokens.to(tail.device)
    image, behind = tail[:, : len(tokens)], tail[:, len(tokens) :]
    entered = call.hidden_tokens.take(start)  # (B, N, D)
    if call.latent:
        whole = entered.index_copy(1, tokens, image.to(entered.dtype))
    else:
        residual = predict(call)  # (B, N, D)
        ran = image.to(residual.dtype) - (entered.index_select(1, tokens) if call.relative else 0)
        residual = residual.index_copy(1, tokens, ran.to(residual.dtype))
        call.residual = residual.detach()
        whole = residual + entered if call.relative else residual
    return torch.cat([whole.to(tail.dtype), behind], dim=1)


def spread_latent(call: Call, predict: Callable[[Call], Tensor]) -> Tensor:
    """Return the residual in latent space, (batch, token, values): as it is where tokens ran, else predicted."""
    tokens, true = call.decision.tokens, call.residual
    assert tokens is not None
    assert true is not None
    tokens = tokens.to(true.device)
    residual = predict(call)
    residual = residual.index_copy(1, tokens, true.index_select(1, tokens).to(residual.dtype))
    call.residual = residual.detach()
    return residual
