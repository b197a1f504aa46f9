"""What differs between transformer classes, one row per class.

In every supported class the first argument of a block's self-attention module is exactly the modulated input
Modulate(Norm1(x)), and the tail starts with one module fed with the stream of image tokens. So a row only names
the block lists, the attention, the tail, and how to read the token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

Grid = tuple[int, int, int]
Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Adapter:
    """Where a transformer class keeps what the instrument needs.

    Args:
        blocks: attribute names of the block lists, in the order they run.
        grid: (model, bound forward arguments) -> frames, rows and columns of the image tokens.
        streams: for each block list, the position of the image stream in the tuple a block returns, or None when
            it returns that tensor alone.
        attention: attribute of a block: its self-attention.
        tail: attribute of the model: the first module after the blocks.
        key: forward argument that tells contexts (guidance branches) apart when the pipeline names none.
        latent: forward argument with the latent input.
        channel_dim: position of the channels in the latent.
    """

    blocks: tuple[str, ...]
    grid: Callable[[Any, Arguments], Grid]
    streams: tuple[int | None, ...] = (None,)
    attention: str = "attn1"
    tail: str = "norm_out"
    key: str = "encoder_hidden_states"
    latent: str = "hidden_states"
    channel_dim: int = 1

    def modules(self, model: nn.Module) -> tuple[list[tuple[nn.Module, int | None]], nn.Module]:
        """The blocks with their image stream, in running order, and the tail."""
        blocks = [
            (block, stream)
            for name, stream in zip(self.blocks, self.streams, strict=True)
            for block in model.get_submodule(name).children()
        ]
        return blocks, model.get_submodule(self.tail)


def _patches(model: Any, arguments: Arguments) -> Grid:
    height, width = arguments["hidden_states"].shape[-2:]
    patch = model.config.patch_size
    return 1, height // patch, width // patch


ADAPTERS: dict[str, Adapter] = {
    "DiTTransformer2DModel": Adapter(("transformer_blocks",), _patches, key="class_labels"),
}


def find_adapter(model: nn.Module) -> Adapter | None:
    """The row of the model's class or of the nearest base class that has one."""
    return next((ADAPTERS[base.__name__] for base in type(model).__mro__ if base.__name__ in ADAPTERS), None)
