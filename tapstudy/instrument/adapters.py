"""What differs between transformer classes, one row per class.

In every supported class the first argument of a block's self-attention module is exactly the modulated input
Modulate(Norm1(x)), and the tail starts with one module fed with the stream of image tokens. So a row only names
the block lists, the attention, the tail, and how to read the token grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn

Grid = tuple[int, int, int]
Arguments = Mapping[str, Any]
Start = int | Sequence[int]


@dataclass(frozen=True)
class Adapter:
    """Where a transformer class keeps what the instrument needs.

    Args:
        blocks: attribute names of the block lists, in the order they run.
        grid: (model, bound forward arguments) -> frames, rows and columns of the tokens of the image being made.
        streams: for each block list, the position of the image stream in the tuple a block returns, or None when
            it returns that tensor alone.
        image_start: for each block list, where the image tokens start in the input of its attention: None (they come
            first) or a function of the forward arguments, for sequences that begin with text. The first entry also
            says where they start in the input of the first block and of the tail.
        attention: attribute of a block: its self-attention.
        tail: attribute of the model: the first module after the blocks, or a container of alternatives for it.
        key: forward argument that tells contexts (guidance branches) apart when the pipeline names none.
        latent: forward argument with the latent input: (batch, channel, row, column), the same with frames, packed
            tokens (batch, token, channel), or a list of samples.
        timestep: forward argument with the timestep.
        channel_dim: position of the channels in a latent that is not packed.
        references: (model, bound forward arguments) -> how many tokens of a packed latent, behind those of the image
            being made, belong to reference images.
        branches: names of the guidance branches, in the order in which this class's pipelines batch them.
        bypass: forward arguments -> why this call can neither skip nor enter the history, or None.
        idle: paths of modules (or lists of such), outside the blocks or in the first one, whose output neither the
            first block's modulated input nor the tail reads, such as the text projection and the modulation of text:
            they do not run at skip steps. Models that hold None there have none. `tapstudy.check` finds a module that
            is read after all.
        refiners: paths of modules in front of the blocks that hold attention or feed-forward layers and run at every
            step.

    Raises:
        ValueError: `streams` or `image_start` of another length than `blocks`.
    """

    blocks: tuple[str, ...]
    grid: Callable[[Any, Arguments], Grid]
    streams: tuple[int | None, ...] = (None,)
    image_start: tuple[Callable[[Arguments], Start] | None, ...] = ()
    attention: str = "attn1"
    tail: str = "norm_out"
    key: str = "encoder_hidden_states"
    latent: str = "hidden_states"
    timestep: str = "timestep"
    channel_dim: int = 1
    references: Callable[[Any, Arguments], int] = lambda model, arguments: 0
    branches: tuple[str, ...] = ("uncond", "cond")
    bypass: Callable[[Arguments], str | None] = lambda arguments: None
    idle: tuple[str, ...] = ()
    refiners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.image_start:
            object.__setattr__(self, "image_start", (None,) * len(self.blocks))
        for name in ("streams", "image_start"):
            if len(getattr(self, name)) != len(self.blocks):
                raise ValueError(
                    f"Adapter: {name} needs one entry per block list, got {len(getattr(self, name))} for the "
                    f"{len(self.blocks)} lists {self.blocks}"
                )

    def modules(self, model: nn.Module) -> tuple[list[tuple[nn.Module, int]], list[nn.Module]]:
        """The blocks, in running order, each with the number of its list; and the modules that may be the tail.

        Raises:
            AttributeError: the model has no such submodule.
        """
        blocks = [
            (block, index) for index, name in enumerate(self.blocks) for block in model.get_submodule(name).children()
        ]
        tail = model.get_submodule(self.tail)
        return blocks, list(tail.children()) if isinstance(tail, nn.ModuleDict | nn.ModuleList) else [tail]

    def start(self, block_list: int, arguments: Arguments) -> Start:
        """Where the image tokens start in the attention input of the blocks in list number `block_list`."""
        find = self.image_start[block_list]
        return 0 if find is None else find(arguments)

    def stream_start(self, block_list: int, arguments: Arguments) -> Start:
        """Where the image tokens start in the hidden state that enters those blocks: first, if text goes beside it."""
        return 0 if self.streams[block_list] is not None else self.start(block_list, arguments)


# Token grids


def _image(model: Any, arguments: Arguments) -> Grid:
    """Latent (..., row, column) cut into square patches."""
    height, width = arguments["hidden_states"].shape[-2:]
    return 1, height // model.config.patch_size, width // model.config.patch_size


def _video(model: Any, arguments: Arguments) -> Grid:
    """Latent (batch, channel, frame, row, column)."""
    patch = model.config.patch_size
    pt, ph, pw = patch if isinstance(patch, tuple | list) else (model.config.patch_size_t, patch, patch)
    frames, height, width = arguments["hidden_states"].shape[2:]
    return frames // pt, height // ph, width // pw


def _frames_first(model: Any, arguments: Arguments) -> Grid:
    """Latent (batch, frame, channel, row, column)."""
    frames = arguments["hidden_states"].shape[1] // (model.config.patch_size_t or 1)
    return frames, *_image(model, arguments)[1:]


def _position_ids(model: Any, arguments: Arguments) -> Grid:
    """Packed tokens with ids (image, row, column, ...), of which only the order counts: they may be any numbers.

    Ids that do not run along the rows of a rectangle make one long row.
    """
    ids = _made_image(arguments)  # (N, 3 or 4)
    row, column = ids[:, 1], ids[:, 2]
    width = int((row == row[0]).cumprod(dim=0).sum())  # of the first run of tokens in the same row
    if len(ids) % width:
        return 1, 1, len(ids)
    rows, columns = row.view(-1, width), column.view(-1, width)
    even = bool((rows == rows[:, :1]).all()) and bool((columns == columns[:1]).all())
    return (1, len(rows), width) if even else (1, 1, len(ids))


def _made_image(arguments: Arguments) -> Tensor:
    """Ids of the image being made, (token, 3 or 4): it comes first, and references carry another image number.

    Image numbers that come back later tell no image from another; then all tokens count.
    """
    ids = arguments["img_ids"]
    ids = (ids[0] if ids.ndim == 3 else ids).cpu()
    same = ids[:, 0] == ids[0, 0]
    count = int(same.cumprod(dim=0).sum())
    return ids[:count] if count == int(same.sum()) else ids


def _other_ids(model: Any, arguments: Arguments) -> int:
    return arguments["img_ids"].shape[-2] - len(_made_image(arguments))


def _image_shapes(model: Any, arguments: Arguments) -> Grid:
    """Packed tokens with a list of (frames, rows, columns): the target first, then references."""
    shapes = arguments["img_shapes"][0]
    if not isinstance(shapes[0], Sequence):
        return tuple(shapes)
    # layered models make several images of one size at once; only the last shape is the reference
    layers = len(shapes) - 1 if model.config.get("use_layer3d_rope") else 1
    return layers * shapes[0][0], *shapes[0][1:]


def _other_shapes(model: Any, arguments: Arguments) -> int:
    shapes = arguments["img_shapes"][0]
    if not isinstance(shapes[0], Sequence):
        return 0
    return sum(map(prod, shapes)) - prod(_image_shapes(model, arguments))


def _given_sizes(model: Any, arguments: Arguments) -> Grid:
    """Packed tokens with their numbers of frames, rows and columns; one long row where those are not all there is."""
    tokens = arguments["hidden_states"].shape[1]
    sizes = [arguments.get(name) for name in ("num_frames", "height", "width")]
    frames, height, width = (int(size or 0) for size in sizes)
    return (frames, height, width) if frames * height * width == tokens else (1, 1, tokens)


def _listed(model: Any, arguments: Arguments) -> Grid:
    """A list of samples (channel, frame, row, column), or a list of lists of images of which the last is made."""
    first = arguments["x"][0]
    return _patches((first[-1] if isinstance(first, list) else first).shape, arguments)


def _patches(shape: Sequence[int], arguments: Arguments) -> Grid:
    patch = arguments.get("patch_size", 2)
    return shape[1] // arguments.get("f_patch_size", 1), shape[2] // patch, shape[3] // patch


# Text in front of the image


def _after_text(arguments: Arguments) -> int:
    """[text, image]"""
    return arguments["encoder_hidden_states"].shape[1]


def _after_captions(arguments: Arguments) -> list[int]:
    """[caption without padding, image, padding], another length in every sample."""
    return arguments["encoder_attention_mask"].sum(dim=1).tolist()


def _after_conditions(arguments: Arguments) -> Start:
    """[image, caption], or in omni mode [captions, references, image, ...], each padded to a multiple of 32."""
    if not isinstance(arguments["x"][0], list):
        return 0
    lengths = [
        [len(caption) for caption in captions]
        + [32 if image is None else prod(_patches(image.shape, arguments)) for image in images[:-1]]
        for images, captions in zip(arguments["x"], arguments["cap_feats"], strict=True)
    ]
    return [sum(-(-length // 32) * 32 for length in sample) for sample in lengths]


# Calls that only work in full


def _skip_layers(arguments: Arguments) -> str | None:
    return "skip_layers" if arguments.get("skip_layers") is not None else None


def _fills_cache(arguments: Arguments) -> str | None:
    return "kv_cache_mode='extract'" if arguments.get("kv_cache_mode") == "extract" else None


def _uneven(arguments: Arguments) -> str | None:
    samples = [sample[-1] if isinstance(sample, list) else sample for sample in arguments["x"]]
    return "samples of different sizes" if len({sample.shape for sample in samples}) > 1 else None


_TWO_STACKS = ("transformer_blocks", "single_transformer_blocks")

ADAPTERS: dict[str, Adapter] = {
    "CogVideoXTransformer3DModel": Adapter(
        ("transformer_blocks",), _frames_first, (0,), tail="norm_final", channel_dim=2,
        idle=("patch_embed.text_proj",),
    ),
    "DiTTransformer2DModel": Adapter(
        ("transformer_blocks",), _image, key="class_labels", branches=("cond", "uncond"),
    ),
    "Flux2Transformer2DModel": Adapter(
        _TWO_STACKS, _position_ids, (1, None), (None, _after_text), attention="attn", bypass=_fills_cache,
        references=_other_ids,
        idle=("context_embedder", "pos_embed", "double_stream_modulation_txt", "single_stream_modulation"),
    ),
    "FluxTransformer2DModel": Adapter(
        _TWO_STACKS, _position_ids, (1, 1), (None, _after_text), attention="attn", references=_other_ids,
        idle=("context_embedder", "pos_embed", "transformer_blocks.0.norm1_context"),
    ),
    "HunyuanVideoTransformer3DModel": Adapter(
        _TWO_STACKS, _video, (0, 0), attention="attn",
        idle=("context_embedder", "rope", "transformer_blocks.0.norm1_context"),
    ),
    "LTXVideoTransformer3DModel": Adapter(
        ("transformer_blocks",), _given_sizes, idle=("caption_projection", "rope"),
    ),
    "Lumina2Transformer2DModel": Adapter(
        ("layers",), _image, image_start=(_after_captions,), attention="attn",
        idle=("time_caption_embed.caption_embedder", "context_refiner"), refiners=("noise_refiner",),
    ),
    "PixArtTransformer2DModel": Adapter(
        ("transformer_blocks",), _image, idle=("caption_projection",),
    ),
    "QwenImageTransformer2DModel": Adapter(
        ("transformer_blocks",), _image_shapes, (1,), attention="attn", references=_other_shapes,
        idle=("txt_norm", "txt_in", "transformer_blocks.0.txt_mod"),
    ),
    "SD3Transformer2DModel": Adapter(
        ("transformer_blocks",), _image, (1,), attention="attn", bypass=_skip_layers,
        idle=("context_embedder", "transformer_blocks.0.norm1_context"),
    ),
    "SanaTransformer2DModel": Adapter(
        ("transformer_blocks",), _image, idle=("caption_projection", "caption_norm"),
    ),
    "WanTransformer3DModel": Adapter(
        ("blocks",), _video, idle=("rope", "condition_embedder.text_embedder", "condition_embedder.image_embedder"),
    ),
    "ZImageTransformer2DModel": Adapter(
        ("layers",), _listed, image_start=(_after_conditions,), attention="attention", tail="all_final_layer",
        key="cap_feats", latent="x", timestep="t", branches=("cond", "uncond"), bypass=_uneven,
        idle=("cap_embedder", "context_refiner", "siglip_embedder", "siglip_refiner"), refiners=("noise_refiner",),
    ),
}  # fmt: skip


def find_adapter(model: nn.Module) -> Adapter | None:
    """The row of the model's class or of the nearest base class that has one."""
    return next((ADAPTERS[base.__name__] for base in type(model).__mro__ if base.__name__ in ADAPTERS), None)


def register_adapter(model: type[nn.Module] | str, adapter: Adapter) -> None:
    """Support another transformer class, and its subclasses. `tapstudy.check` tells whether the row is right.

    Args:
        model: the class, or its name.
        adapter: its row; replaces one of the same name.

    >>> tapstudy.register_adapter(MyTransformer, Adapter(("blocks",), grid=lambda m, a: (1, 8, 8)))  # doctest: +SKIP
    """
    if not isinstance(adapter, Adapter):
        raise TypeError(f"register_adapter needs an Adapter, got {adapter!r}")
    if inspect.isclass(model) and issubclass(model, nn.Module):
        model = model.__name__
    if not isinstance(model, str):
        raise TypeError(f"register_adapter needs a torch module class or the name of one, got {model!r}")
    ADAPTERS[model] = adapter
