"""ImageReward (arXiv 2304.05977) from its published checkpoint, on the BLIP of transformers.

Its own package does not import beside a current transformers; the network is an image and a text encoder of BLIP and a
linear head, and transformers has both encoders under other names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tapstudy.bench.paper.pixels import normalised_for_clip

CHECKPOINT = "ImageReward.pt"
BERT = "google-bert/bert-base-uncased"  # whose words it reads
WORDS = ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the scores on the authors' training images
TOKENS = 35  # of a prompt; what is longer is cut, as by the authors
HEAD = 64  # width of an attention head, in both encoders
TEXT = "blip.text_encoder."
# parts of the image encoder: name in the checkpoint -> name in transformers
VISION = (
    (r"blip\.visual_encoder\.cls_token", "embeddings.class_embedding"),
    (r"blip\.visual_encoder\.pos_embed", "embeddings.position_embedding"),
    (r"blip\.visual_encoder\.patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"blip\.visual_encoder\.norm\.", "post_layernorm."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"encoder.layers.\1.self_attn.qkv."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.projection."),
    (r"blip\.visual_encoder\.blocks\.(\d+)\.mlp\.", r"encoder.layers.\1.mlp."),
)


class ImageReward:
    """Score images by how people would like them for their prompts, about -2 to 2; a metric, see `load_metrics`.

    Args:
        folder: with the checkpoint and the files of BERT's uncased tokenizer; without these the hub's cache has them.
        device: of the network.

    Raises:
        ValueError: a checkpoint of something else.

    Cost of an image: one pass of a ViT-L/16 at 224 pixels and of BERT base. Memory: 1.8 GB.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu") -> None:
        from transformers import AutoTokenizer

        path = Path(folder) / CHECKPOINT
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        try:
            self.vision, self.text, self.head = _networks(state)
        except (KeyError, IndexError, RuntimeError) as error:
            raise ValueError(f"{path} is no checkpoint of ImageReward ({type(error).__name__}: {error})") from error
        for part in (self.vision, self.text, self.head):
            part.eval().requires_grad_(False).to(device)
        self.size = int(self.vision.config.image_size)
        words = folder if (Path(folder) / "vocab.txt").is_file() else BERT
        self.tokenizer = AutoTokenizer.from_pretrained(words, local_files_only=True)
        self.device = device

    @torch.no_grad()
    def __call__(self, images: Tensor, reference: Tensor, prompts: Sequence[Any]) -> Tensor:
        """Return the reward of every image, (sample,); of videos the mean over frames."""
        found = []
        for image, prompt in zip(images, prompts, strict=True):
            pixels = normalised_for_clip(image, self.size).to(self.device)
            asked = self.tokenizer(
                [prompt] * len(pixels), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
            ).to(self.device)
            text = self.text(
                input_ids=asked.input_ids,
                attention_mask=asked.attention_mask,
                encoder_hidden_states=self.vision(pixels).last_hidden_state,
            )
            score = self.head(text.last_hidden_state[:, 0].float())
            found.append(((score - MEAN) / STD).mean().cpu())
        return torch.stack(found)


def _networks(state: Mapping[str, Tensor]) -> tuple[Any, Any, nn.Module]:
    """Build both encoders and the head in the sizes of the weights, and fill them."""
    from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

    vision_state = dict(filter(None, (_of_vision(name, value) for name, value in state.items())))
    text_state = {
        name.removeprefix(TEXT): value
        for name, value in state.items()
        if name.startswith(TEXT) and not name.endswith("position_ids")
    }
    patches = vision_state["embeddings.patch_embedding.weight"]  # (width, band, y, x)
    width, side = patches.shape[0], patches.shape[-1]
    cells = vision_state["embeddings.position_embedding"].shape[1] - 1
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=width, intermediate_size=len(vision_state["encoder.layers.0.mlp.fc1.bias"]),
            num_hidden_layers=_count(vision_state, r"encoder\.layers\.(\d+)\."), num_attention_heads=width // HEAD,
            image_size=side * round(cells**0.5), patch_size=side, layer_norm_eps=1e-6, hidden_act="gelu",
        )
    )  # fmt: skip
    words = text_state["embeddings.word_embeddings.weight"]
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=len(words), hidden_size=words.shape[1], encoder_hidden_size=width,
            intermediate_size=len(text_state["encoder.layer.0.intermediate.dense.bias"]),
            num_hidden_layers=_count(text_state, r"encoder\.layer\.(\d+)\."),
            num_attention_heads=words.shape[1] // HEAD, is_decoder=True, hidden_act="gelu", layer_norm_eps=1e-12,
            max_position_embeddings=len(text_state["embeddings.position_embeddings.weight"]),
            bos_token_id=None, eos_token_id=None, sep_token_id=None, pad_token_id=0,
        ),
        add_pooling_layer=False,
    )  # fmt: skip
    vision.load_state_dict(vision_state)
    missing, unexpected = text.load_state_dict(text_state, strict=False)
    if unexpected or any(not name.endswith("position_ids") for name in missing):
        raise KeyError(f"missing {missing}, unexpected {unexpected}")
    weights = [state[name] for name in sorted(state, key=_layer) if name.startswith("mlp.") and name.endswith("weight")]
    biases = [state[name] for name in sorted(state, key=_layer) if name.startswith("mlp.") and name.endswith("bias")]
    head = nn.Sequential(*(nn.Linear(weight.shape[1], weight.shape[0]) for weight in weights))
    for layer, weight, bias in zip(head, weights, biases, strict=True):
        layer.load_state_dict({"weight": weight, "bias": bias})
    if head[-1].out_features != 1:
        raise KeyError(f"a head of {head[-1].out_features} outputs")
    return vision, text, head


def _of_vision(name: str, value: Tensor) -> tuple[str, Tensor] | None:
    for pattern, new in VISION:
        if re.match(pattern, name):
            return re.sub(pattern, new, name), value
    return None


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max(int(found[1]) for name in state if (found := re.match(pattern, name)))


def _layer(name: str) -> int:
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else -1
