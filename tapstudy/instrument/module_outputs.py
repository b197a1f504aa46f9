"""Outputs of modules that a recording names by their paths, such as `transformer_blocks.3.attn`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NamedTuple, Self

from torch import Tensor, nn

from tapstudy.instrument.adapters import Adapter
from tapstudy.instrument.layouts import Start
from tapstudy.instrument.tokens import ImageTokens


@dataclass(frozen=True)
class WatchedModule:
    """One module, and what is known of the tokens in its output.

    Attributes:
        block_list: number of the list of its block; the first for modules outside of blocks.
        position: of the image stream in what a block returns; None for the first tensor there is.
        of_image: whether it is known to give the image stream, as blocks and their self-attention do; of other modules
            only lengths tell.
    """

    path: str
    module: nn.Module
    block_list: int
    position: int | None = None
    of_image: bool = False

    @classmethod
    def find(cls, model: nn.Module, adapter: Adapter, path: str) -> Self:
        """Find the module of a path; raises ValueError for one that is not there or does not run, with near ones."""
        modules = {
            name: module for name, module in model.named_modules(remove_duplicate=False) if name and _runs(module)
        }
        if path not in modules:
            near = get_close_matches(path, modules, n=3, cutoff=0.4) or list(modules)[:3]
            raise ValueError(
                f"{type(model).__name__} has no module {path!r} that runs: did you mean {', '.join(near)}? "
                "model.named_modules() lists them all"
            )
        for index, blocks in enumerate(adapter.blocks):
            if path.startswith(f"{blocks}."):
                _, _, inner = path.removeprefix(f"{blocks}.").partition(".")
                position = None if inner else adapter.streams[index]
                return cls(path, modules[path], index, position, inner in ("", adapter.attention))
        return cls(path, modules[path], 0)

    def tensor(self, output: Any) -> Tensor | None:
        """Take the tensor of an output: the image stream of a block, else the first there is."""
        if self.position is not None and isinstance(output, tuple | list):
            output = output[self.position]
        return _first(output)


class ModuleOutput(NamedTuple):
    """What a module gave in a pass.

    Attributes:
        values: (batch, token, channel) of the image's tokens, or (batch, ...) in the module's own dimensions.
        of_tokens: whether it is the former.
    """

    values: Tensor
    of_tokens: bool


@dataclass(frozen=True)
class Sequences:
    """How long the sequences of a pass are, which tells where image tokens are in one.

    Attributes:
        count: tokens of the image being made.
        length: of the sequence that enters the first block, (batch, sequence, channel).
        text: tokens of the text, None if unknown.
        starts: of the image tokens in the attention input of every block list.
    """

    count: int
    length: int
    text: int | None
    starts: Mapping[int, Start]

    def image_tokens(self, length: int, block_list: int, *, of_image: bool = False) -> ImageTokens | None:
        """Find the image tokens in a sequence of that length, None where there are none, or it may as well be text."""
        first, start = self.starts[0], self.starts[block_list]
        if length == self.text and not of_image:
            return None
        if not (isinstance(first, int) and isinstance(start, int)):
            known = {self.length: start, self.count: 0}
        else:  # text and image, the image stream with its references, or the image alone
            known = {self.length - first + start: start, self.length - first: 0, self.count: 0}
        return ImageTokens(self.count, known[length]) if length in known else None

    def read(self, watched: WatchedModule, outputs: list[Any], batch: int) -> ModuleOutput | None:
        """Read what a module gave in the pass, None if it did not run.

        Raises RuntimeError for one that ran several times, or gave no tensor with a row for every sample.
        """
        if not outputs:
            return None
        if len(outputs) > 1:
            raise RuntimeError(
                f"module {watched.path!r} ran {len(outputs)} times in one pass, and it is unclear which time is meant: "
                "record a module that runs once"
            )
        tensor = watched.tensor(outputs[0])
        if tensor is None or tensor.ndim < 2 or len(tensor) != batch or tensor.is_complex():
            got = type(outputs[0]).__name__ if tensor is None else f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise RuntimeError(f"module {watched.path!r} gave {got}, not real numbers with a row for each of {batch}")
        tokens = None
        if tensor.ndim == 3:
            tokens = self.image_tokens(tensor.shape[1], watched.block_list, of_image=watched.of_image)
        values = tensor.detach() if tokens is None else tokens.take(tensor.detach())
        return ModuleOutput(values, tokens is not None)


def _runs(module: nn.Module) -> bool:
    return not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.ParameterList | nn.ParameterDict)


def _first(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := _first(part)) is not None), None)
