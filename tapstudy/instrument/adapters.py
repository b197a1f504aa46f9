"""What differs between transformer classes, one row per class.

In every supported class the first argument of a block's self-attention module is exactly the modulated input
Modulate(Norm1(x)), and the tail starts with one module fed with the stream of image tokens. So a row only names
the block lists, the attention, the tail, and how to read the token grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from tapstudy.instrument import layouts
from tapstudy.instrument.layouts import Arguments, Grid, Start


@dataclass(frozen=True)
class Adapter:
    """Where a transformer class keeps what the instrument needs.

    Args:
        blocks: attribute names of the block lists, in the order they run.
        grid: (model, bound forward arguments) -> frames, rows and columns of the tokens of the image being made; see
            `tapstudy.instrument.layouts`. Without one packed tokens count as one long row, of which users are told.
        streams: for each block list, the position of the image stream in the tuple a block returns, or None when
            it returns that tensor alone.
        image_start: for each block list, where the image tokens start in the input of its attention: None (they come
            first) or a function of the forward arguments, for sequences that begin with text. The first entry also
            says where they start in the input of the first block and of the tail.
        tail_start: where they start in the input of the tail, if elsewhere.
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
            they do not run at skip steps. Models that hold None there have none; nor do those that lack a module whose
            path ends in "?". `tapstudy.check` finds a module that is read after all.
        refiners: paths of modules in front of the blocks that hold attention or feed-forward layers and run at every
            step.

    Raises:
        ValueError: `streams` or `image_start` of another length than `blocks`.
    """

    blocks: tuple[str, ...]
    grid: Callable[[Any, Arguments], Grid] = layouts.one_row
    streams: tuple[int | None, ...] = (None,)
    image_start: tuple[Callable[[Arguments], Start] | None, ...] = ()
    tail_start: Callable[[Arguments], Start] | None = None
    attention: str = "attn1"
    tail: str = "norm_out"
    key: str = "encoder_hidden_states"
    latent: str = "hidden_states"
    timestep: str = "timestep"
    channel_dim: int = 1
    references: Callable[[Any, Arguments], int] = lambda model, arguments: 0
    branches: tuple[str, ...] = ("uncond", "cond")
    bypass: Callable[[Arguments], str | None] | None = None
    idle: tuple[str, ...] = ()
    refiners: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.image_start:
            object.__setattr__(self, "image_start", (None,) * len(self.blocks))
        if self.grid is layouts.one_row and self.latent != "hidden_states":
            object.__setattr__(self, "grid", partial(layouts.one_row, latent=self.latent))
        for name in ("streams", "image_start"):
            if len(getattr(self, name)) != len(self.blocks):
                raise ValueError(
                    f"Adapter: {name} needs one entry per block list, got {len(getattr(self, name))} for the "
                    f"{len(self.blocks)} lists {self.blocks}"
                )

    def modules(self, model: nn.Module) -> tuple[list[tuple[nn.Module, int]], list[nn.Module]]:
        """Return the blocks, in running order, each with the number of its list; and the modules that may be the tail.

        Raises:
            AttributeError: the model has no such submodule.
        """
        blocks = [
            (block, index) for index, name in enumerate(self.blocks) for block in model.get_submodule(name).children()
        ]
        tail = model.get_submodule(self.tail)
        return blocks, list(tail.children()) if isinstance(tail, nn.ModuleDict | nn.ModuleList) else [tail]

    def notice(self, grid: Grid) -> str | None:
        """Tell what is worth knowing about a grid that nobody named, or None."""
        if getattr(self.grid, "func", self.grid) is not layouts.one_row or grid[:2] != (1, 1):
            return None
        return (
            f"the adapter names no grid: {grid[2]} tokens count as one long row. Nothing depends on it but maps of "
            "tokens; to have them in rows and columns, give the Adapter a grid"
        )

    def start(self, block_list: int, arguments: Arguments) -> Start:
        """Tell where the image tokens start in the attention input of the blocks in list number `block_list`."""
        find = self.image_start[block_list]
        return 0 if find is None else find(arguments)

    def stream_start(self, block_list: int, arguments: Arguments) -> Start:
        """Tell where image tokens start in the hidden state that enters those blocks: first, if text goes beside it."""
        start = self.start(block_list, arguments)
        return 0 if self.streams[block_list] is not None and start is not None else start

    def start_in_tail(self, arguments: Arguments) -> Start:
        """Tell where the image tokens start in the input of the tail."""
        return self.start(0, arguments) if self.tail_start is None else self.tail_start(arguments)


_TWO_STACKS = ("transformer_blocks", "single_transformer_blocks")
_TEXT_IN_TWO_STACKS = ("context_embedder", "pos_embed", "transformer_blocks.0.norm1_context")
_WAN_CONDITIONS = ("rope", "condition_embedder.text_embedder", "condition_embedder.image_embedder")

# a class that the installed diffusers does not have is a row that nothing asks for
ADAPTERS: dict[str, Adapter] = {
    "AllegroTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.video, idle=("caption_projection",),
    ),
    "AnyFlowTransformer3DModel": Adapter(
        ("blocks",), layouts.frames_first, channel_dim=2, idle=_WAN_CONDITIONS,
    ),
    "AuraFlowTransformer2DModel": Adapter(
        ("joint_transformer_blocks", "single_transformer_blocks"), layouts.image, (1, None),
        (None, layouts.after_registers), attention="attn",
        idle=("context_embedder", "joint_transformer_blocks.0.norm1_context"),
    ),
    "BriaFiboTransformer2DModel": Adapter(
        _TWO_STACKS, layouts.position_ids, (1, None), (None, layouts.after_text), attention="attn",
        references=layouts.other_ids, idle=(*_TEXT_IN_TWO_STACKS, "caption_projection"),
    ),
    "BriaTransformer2DModel": Adapter(
        _TWO_STACKS, layouts.position_ids, (1, 1), (None, layouts.after_text), attention="attn",
        references=layouts.other_ids, idle=_TEXT_IN_TWO_STACKS,
    ),
    "ChromaTransformer2DModel": Adapter(
        _TWO_STACKS, layouts.position_ids, (1, None), (None, layouts.after_text), attention="attn",
        references=layouts.other_ids, idle=_TEXT_IN_TWO_STACKS,
    ),
    "ChronoEditTransformer3DModel": Adapter(("blocks",), layouts.video, idle=_WAN_CONDITIONS),
    "CogVideoXTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.frames_first, (0,), tail="norm_final", channel_dim=2,
        idle=("patch_embed.text_proj",),
    ),
    "CogView3PlusTransformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image, (0,), idle=("patch_embed.text_proj",),
    ),
    "CogView4Transformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image, (0,), idle=("patch_embed.text_proj", "rope"),
    ),
    "ConsisIDTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.frames_first, (0,), tail="norm_final", tail_start=layouts.after_text,
        channel_dim=2, idle=("patch_embed.text_proj", "local_facial_extractor?", "perceiver_cross_attention?"),
    ),
    "CosmosTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.video, idle=("rope", "crossattn_proj?", "img_context_proj?"),
    ),
    "DiTTransformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image, key="class_labels", branches=("cond", "uncond"),
    ),
    "EasyAnimateTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.video, (0,), tail="norm_final",
        idle=("text_proj", "text_proj_t5", "rope_embedding"),
    ),
    "Flux2Transformer2DModel": Adapter(
        _TWO_STACKS, layouts.position_ids, (1, None), (None, layouts.after_text), attention="attn",
        bypass=layouts.fills_cache, references=layouts.other_ids,
        idle=("context_embedder", "pos_embed", "double_stream_modulation_txt", "single_stream_modulation"),
    ),
    "FluxTransformer2DModel": Adapter(
        _TWO_STACKS, layouts.position_ids, (1, 1), (None, layouts.after_text), attention="attn",
        references=layouts.other_ids, idle=_TEXT_IN_TWO_STACKS,
    ),
    "GlmImageTransformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image, (0,), bypass=layouts.fills_caches, idle=("glyph_projector", "rope"),
        refiners=("prior_projector",),
    ),
    "HeliosTransformer3DModel": Adapter(
        ("blocks",), layouts.video, image_start=(layouts.last,),
        idle=("rope", "condition_embedder.text_embedder", "patch_short?", "patch_mid?", "patch_long?"),
    ),
    "HiDreamImageTransformer2DModel": Adapter(
        ("double_stream_blocks", "single_stream_blocks"), layouts.image, (0, None), attention="block.attn1",
        tail="final_layer", key="encoder_hidden_states_t5", timestep="timesteps",
        idle=("caption_projection", "pe_embedder"),
    ),
    "HunyuanDiT2DModel": Adapter(
        ("blocks",), layouts.image, idle=("text_embedder",), refiners=("time_extra_emb.pooler",),
    ),
    "HunyuanVideo15Transformer3DModel": Adapter(
        ("transformer_blocks",), layouts.video, (0,), attention="attn",
        idle=(
            "context_embedder", "context_embedder_2", "image_embedder", "cond_type_embed", "rope",
            "transformer_blocks.0.norm1_context",
        ),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Adapter(
        _TWO_STACKS, layouts.video, (0, 0), (layouts.last, layouts.last), tail_start=lambda arguments: 0,
        attention="attn",
        idle=(
            "context_embedder", "rope", "image_projection", "clean_x_embedder", "transformer_blocks.0.norm1_context",
        ),
    ),
    "HunyuanVideoTransformer3DModel": Adapter(
        _TWO_STACKS, layouts.video, (0, 0), attention="attn",
        idle=("context_embedder", "rope", "transformer_blocks.0.norm1_context"),
    ),
    "JoyImageEditTransformer3DModel": Adapter(
        ("double_blocks",), layouts.items, (0,), attention="attn", idle=("condition_embedder.text_embedder",),
    ),
    "Kandinsky5Transformer3DModel": Adapter(
        ("visual_transformer_blocks",), layouts.channels_last, attention="self_attention", tail="out_layer",
        channel_dim=4, bypass=layouts.sparse,
        idle=("text_embeddings", "text_rope_embeddings", "text_transformer_blocks", "visual_rope_embeddings"),
    ),
    "Krea2Transformer2DModel": Adapter(
        ("transformer_blocks",), layouts.later_position_ids, image_start=(layouts.after_text,),
        tail_start=lambda arguments: 0, attention="attn", tail="final_layer",
        idle=("text_fusion", "txt_in", "rotary_emb"),
    ),
    "LTXVideoTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.given_sizes, idle=("caption_projection", "rope"),
    ),
    "LongCatImageTransformer2DModel": Adapter(
        _TWO_STACKS, layouts.position_ids, (1, 1), (None, layouts.after_text), attention="attn",
        references=layouts.other_ids, idle=_TEXT_IN_TWO_STACKS,
    ),
    "Lumina2Transformer2DModel": Adapter(
        ("layers",), layouts.image, image_start=(layouts.after_captions,), attention="attn",
        idle=("time_caption_embed.caption_embedder", "context_refiner"), refiners=("noise_refiner",),
    ),
    "LuminaNextDiT2DModel": Adapter(("layers",), layouts.image),
    "MochiTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.video, (0,),
        idle=("time_embed.caption_proj", "rope", "transformer_blocks.0.norm1_context"), refiners=("time_embed.pooler",),
    ),
    "MotifVideoTransformer3DModel": Adapter(
        _TWO_STACKS, layouts.video, (0, 0), attention="attn",
        idle=("context_embedder", "image_embedder?", "rope", "transformer_blocks.0.norm1_context"),
    ),
    "NucleusMoEImageTransformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image_shapes, attention="attn", references=layouts.other_shapes,
        idle=("txt_norm", "pos_embed", "transformer_blocks.0.encoder_proj"),
    ),
    "OvisImageTransformer2DModel": Adapter(
        _TWO_STACKS, layouts.position_ids, (1, 1), (None, layouts.after_text), attention="attn",
        references=layouts.other_ids, idle=(*_TEXT_IN_TWO_STACKS, "context_embedder_norm"),
    ),
    "PRXTransformer2DModel": Adapter(
        ("blocks",), layouts.image, attention="attention", tail="final_layer", idle=("txt_in", "pe_embedder"),
    ),
    "PixArtTransformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image, idle=("caption_projection",),
    ),
    "QwenImageTransformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image_shapes, (1,), attention="attn", references=layouts.other_shapes,
        idle=("txt_norm", "txt_in", "transformer_blocks.0.txt_mod"),
    ),
    "SD3Transformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image, (1,), attention="attn", bypass=layouts.skip_layers,
        idle=("context_embedder", "transformer_blocks.0.norm1_context"),
    ),
    "SanaTransformer2DModel": Adapter(
        ("transformer_blocks",), layouts.image, idle=("caption_projection", "caption_norm"),
    ),
    "SanaVideoTransformer3DModel": Adapter(
        ("transformer_blocks",), layouts.video, idle=("caption_projection", "caption_norm", "rope"),
    ),
    "SkyReelsV2Transformer3DModel": Adapter(
        ("blocks",), layouts.video, bypass=layouts.moves_frames_apart, idle=_WAN_CONDITIONS,
    ),
    "WanAnimateTransformer3DModel": Adapter(
        ("blocks",), layouts.video, idle=(*_WAN_CONDITIONS, "motion_encoder", "face_encoder", "face_adapter"),
    ),
    "WanTransformer3DModel": Adapter(("blocks",), layouts.video, idle=_WAN_CONDITIONS),
    "WanVACETransformer3DModel": Adapter(
        ("blocks",), layouts.video, idle=(*_WAN_CONDITIONS, "vace_patch_embedding", "vace_blocks"),
    ),
    "ZImageTransformer2DModel": Adapter(
        ("layers",), layouts.listed, image_start=(layouts.after_conditions,), attention="attention",
        tail="all_final_layer", key="cap_feats", latent="x", timestep="t", branches=("cond", "uncond"),
        bypass=layouts.uneven, idle=("cap_embedder", "context_refiner", "siglip_embedder", "siglip_refiner"),
        refiners=("noise_refiner",),
    ),
}  # fmt: skip


_REPLACED: dict[str, Adapter | None] = {}  # what stood in the table where somebody registered a row


def find_adapter(model: nn.Module) -> Adapter | None:
    """Return the row of the model's class or of the nearest base class that has one."""
    return next((ADAPTERS[base.__name__] for base in type(model).__mro__ if base.__name__ in ADAPTERS), None)


def why_unsupported(where: str, classes: Iterable[str]) -> str:
    """Tell why there is nothing to accelerate among models of these classes, and what to do."""
    names = sorted(classes)
    nets = [name for name in names if "UNet" in name]
    found = f"no supported transformer in {where}: found {', '.join(names)}"
    if nets:
        return (
            f"{found}. {nets[0]} is a U-Net, which TAP does not support: the number of its tokens changes from level "
            "to level, skip connections lead past any one place for a residual, and no level has a modulated input to "
            "serve as probe. Use a pipeline with a diffusion transformer (docs/models.md lists them), or a cache made "
            "for U-Nets, such as DeepCache"
        )
    return (
        f"{found}; supported are {', '.join(sorted(ADAPTERS))}; add your own with tapstudy.register_adapter "
        "(docs/your_own_class.md)"
    )


def register_adapter(model: type[nn.Module] | str, adapter: Adapter) -> None:
    """Support another transformer class, and its subclasses. `tapstudy.check` tells whether the row is right.

    Args:
        model: the class, or its name.
        adapter: its row; replaces one of the same name.

    Examples:
        >>> tapstudy.register_adapter(MyTransformer, Adapter(("blocks",), grid=layouts.image))  # doctest: +SKIP
    """
    if not isinstance(adapter, Adapter):
        raise TypeError(f"register_adapter needs an Adapter, got {adapter!r}")
    name = _class_name(model, "register_adapter")
    _REPLACED.setdefault(name, ADAPTERS.get(name))
    ADAPTERS[name] = adapter


def unregister_adapter(model: type[nn.Module] | str) -> None:
    """Undo `register_adapter`: a row that came with the package is back. Policies in force keep the row they have.

    Raises ValueError when no adapter was registered for that class.
    """
    name = _class_name(model, "unregister_adapter")
    if name not in _REPLACED:
        raise ValueError(f"no adapter was registered for {name}")
    before = _REPLACED.pop(name)
    if before is None:
        del ADAPTERS[name]
    else:
        ADAPTERS[name] = before


def _class_name(model: type[nn.Module] | str, who: str) -> str:
    if inspect.isclass(model) and issubclass(model, nn.Module):
        return model.__name__
    if not isinstance(model, str):
        raise TypeError(f"{who} needs a torch module class or the name of one, got {model!r}")
    return model
