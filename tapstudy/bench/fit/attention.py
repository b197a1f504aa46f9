"""Where blocks look: the share of attention that falls on the foreground of the images, as ProfilingDiT asks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from tapstudy.bench.image_set import ImageSet
from tapstudy.instrument.handle import find_transformers


def foreground_attention(pipe: Any, images: ImageSet) -> list[float]:
    """Measure, for every block, how much attention the foreground gets, as a share of what it would get of even one.

    Below 1 a block attends to the background. Averaged over heads, queries, steps, contexts and images. Approximate:
    the published profile (arXiv 2504.03140) is one of attention, too, but how the foreground is told is not known in
    full; here it is `foreground` of the finished image. In attention over text and image the image's tokens are taken
    to be the last ones.

    Args:
        pipe: an embedded pipeline, without a policy.
        images: that it samples.

    Raises:
        ValueError: the images are of one colour.
    """
    shares: dict[int, list[Tensor]] = defaultdict(list)
    for batch in images.batches():
        attention = _Attention(len(batch))
        with torch.no_grad(), _watched(pipe, attention), attention:
            made = batch.sample(pipe)
        masks = foreground(made, attention.grid)  # (image, token)
        held = masks.any(dim=1)
        for block, sums in attention.sums.items():
            given = sums[held] / sums[held].sum(dim=1, keepdim=True)
            shares[block] += [(given * masks[held]).sum(dim=1) / masks[held].double().mean(dim=1)]
    found = {block: torch.cat(values) for block, values in shares.items()}
    if not found or not len(found[0]):
        raise ValueError("no image has a foreground: all are of one colour")
    return [float(found[block].mean()) for block in sorted(found)]


def foreground(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tell the tokens that differ from the background, (image, token).

    The background is the median colour of an image; tokens whose pixels differ from it by more than they do on average
    over the image are foreground.

    Args:
        images: (image, band, row, column).
        grid: rows and columns of tokens.
    """
    colour = images.flatten(2).median(dim=2).values[:, :, None, None]
    away = F.adaptive_avg_pool2d((images - colour).abs().mean(dim=1, keepdim=True), grid).flatten(1)
    return away > away.mean(dim=1, keepdim=True)


def groups_of(blocks: Collection[int]) -> tuple[tuple[int, int], ...]:
    """Gather blocks into runs of neighbours: pairs of the first one and the one behind the last."""
    chosen = set(blocks)
    first = sorted(block for block in chosen if block - 1 not in chosen)
    behind = sorted(block + 1 for block in chosen if block + 1 not in chosen)
    return tuple(zip(first, behind, strict=True))


class _Attention(TorchFunctionMode):
    """Sums up, block by block, what the tokens of every image get of the attention: `sums`, (image, token) each."""

    def __init__(self, images: int) -> None:
        super().__init__()
        self.images, self.grid = images, (0, 0)
        self.block: int | None = None
        self.sums: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and self.block is not None:
            self._watch(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _watch(self, query: Tensor, key: Tensor, *_: Any, scale: float | None = None, **__: Any) -> None:
        """Take in the attention from and to tokens of the image, of queries and keys (batch, head, token, channel)."""
        tokens = prod(self.grid)
        if min(query.shape[2], key.shape[2]) < tokens:
            return  # to a text alone
        scores = query[:, :, -tokens:].float() @ key.float().mT * (scale or query.shape[-1] ** -0.5)
        given = scores.softmax(dim=-1)[..., -tokens:].mean(dim=(1, 2)).double()  # (batch, token)
        assert self.block is not None
        sums = given.unflatten(0, (-1, self.images)).sum(dim=0)
        self.sums[self.block] = self.sums[self.block] + sums if self.block in self.sums else sums


@contextmanager
def _watched(pipe: Any, attention: _Attention) -> Iterator[None]:
    """Tell `attention` the grid of tokens and which block runs."""
    ((model, adapter),) = find_transformers(pipe).values()

    def begin(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        frames, rows, columns = adapter.grid(model, signature(model.forward).bind(*args, **kwargs).arguments)
        attention.grid = (frames * rows, columns)

    def enter(block: int | None, *_: Any) -> None:
        attention.block = block

    hooks = [model.register_forward_pre_hook(begin, with_kwargs=True)]
    for index, (block, _) in enumerate(adapter.modules(model)[0]):
        hooks += [
            block.register_forward_pre_hook(partial(enter, index)),
            block.register_forward_hook(partial(enter, None)),
        ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
