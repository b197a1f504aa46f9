"""Let models run on torch's meta device: what some of them read from values, a stand-in gives in the right shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

META = torch.device("meta")


def spare_values(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Put stand-ins into a model whose class needs some, and return the inputs to call it with.

    As many FLOPs as ever, but for rotary tables.
    """
    spare = _SPARED.get(type(model).__name__)
    return inputs if spare is None else inputs | spare(model, inputs)


def _lumina2(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The lengths of captions."""
    model.get_submodule("rope_embedder").register_forward_pre_hook(
        lambda _, args: (args[0], torch.ones(args[1].shape, dtype=torch.int64))
    )
    return {}


def _hunyuan_video15(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Masks of texts, and whether there is an image: the model is given values, which its parts do not need."""

    def without(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return tuple(map(_to_meta, args)), {name: _to_meta(value) for name, value in kwargs.items()}

    for child in model.modules():
        if child is not model:
            child.register_forward_pre_hook(without, with_kwargs=True)
    names = ("encoder_attention_mask", "encoder_attention_mask_2", "image_embeds")
    return {name: torch.ones(inputs[name].shape, dtype=inputs[name].dtype) for name in names}


def _to_meta(value: Any) -> Any:
    return value.to(META) if isinstance(value, Tensor) else value


def _mochi(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The mask of the text; rotary tables, which are made under autocast."""

    def tables(frequencies: Tensor, frames: int, height: int, width: int, **_: Any) -> tuple[Tensor, Tensor]:
        shape = frames * height * width, *frequencies.shape[1:]
        return torch.empty(shape, device=META), torch.empty(shape, device=META)

    _replace(model.get_submodule("rope"), "forward", tables)
    model.get_submodule("time_embed").register_forward_pre_hook(lambda _, args: tuple(map(_to_meta, args)))
    return {"encoder_attention_mask": torch.ones(inputs["encoder_attention_mask"].shape, dtype=torch.bool)}


def _hidream(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Sizes; how many tokens go to which expert: all to the first, as often as there are experts for each."""
    patchify: Any = model.patchify
    config: Any = model.config

    def patchify_with_sizes(latent: Tensor) -> tuple[Any, ...]:
        tokens, mask, _, ids = patchify(latent)
        height, width = (size // config.patch_size for size in latent.shape[-2:])
        return tokens, mask, [(height, width)] * len(latent), ids

    _replace(model, "patchify", patchify_with_sizes)
    for layer in model.modules():
        if hasattr(layer, "moe_infer"):
            _replace(layer, "moe_infer", partial(_first_expert, layer.get_submodule("experts.0")))
    return {}


def _first_expert(expert: nn.Module, x: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    made: Tensor = expert(x.repeat(len(indices) // len(x), 1))
    return made[: len(x)]


def _nucleus(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The same."""
    for layer in model.modules():
        if type(layer).__name__ == "SwiGLUExperts":

            def forward(x: Tensor, counts: Tensor, layer: Any = layer) -> Tensor:
                gate, up = (x @ layer.gate_up_proj[0]).chunk(2, dim=-1)
                return (nn.functional.silu(gate) * up) @ layer.down_proj[0]

            _replace(layer, "forward", forward)
    return {"encoder_hidden_states_mask": None}


def _replace(module: nn.Module, name: str, method: Callable[..., Any]) -> None:
    setattr(module, name, method)


_SPARED: dict[str, Callable[[nn.Module, dict[str, Any]], dict[str, Any]]] = {
    "HiDreamImageTransformer2DModel": _hidream,
    "HunyuanVideo15Transformer3DModel": _hunyuan_video15,
    "Lumina2Transformer2DModel": _lumina2,
    "MochiTransformer3DModel": _mochi,
    "NucleusMoEImageTransformer2DModel": _nucleus,
}
