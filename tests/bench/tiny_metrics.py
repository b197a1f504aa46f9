"""Weights of the paper's metrics in small sizes, in the folder and under the names of the published ones."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
import transformers
from torch import Tensor

from tests.pipelines import text

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "dog", "on", "grass", ".", "##s"]
VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
WIDTH, INNER = 64, 96


def clip(folder: Path) -> Path:
    """Random weights, 32 pixels, the words of the tiny pipelines."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.CLIPConfig(
            text_config=sizes | {"max_position_embeddings": 16} | text.IDS,
            vision_config=sizes | {"image_size": 32, "patch_size": 8},
            projection_dim=8,
        )
        transformers.CLIPModel(config).save_pretrained(folder)
    text.tokenizer().save_pretrained(folder)
    return folder


def image_reward(folder: Path) -> Path:
    """Weights that are digits of sines, so that another program can make the same ones."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({name: value_of(name, shape) for name, shape in shapes().items()}, folder / "ImageReward.pt")
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    return folder


def value_of(name: str, shape: tuple[int, ...]) -> Tensor:
    count = int(torch.tensor(shape).prod())
    start = zlib.crc32(name.encode()) % 1000
    far = 43758.5453 * torch.sin(start + 12.9898 * torch.arange(count, dtype=torch.float64))
    return (far - far.floor() - 0.5).float().view(shape)


def shapes() -> dict[str, tuple[int, ...]]:
    """Of 32 pixels in cells of 16, one layer in each encoder."""
    found: dict[str, tuple[int, ...]] = {
        f"{VISION}cls_token": (1, 1, WIDTH),
        f"{VISION}pos_embed": (1, 5, WIDTH),
        f"{VISION}patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        f"{VISION}patch_embed.proj.bias": (WIDTH,),
        f"{TEXT}embeddings.word_embeddings.weight": (len(WORDS) + 2, WIDTH),
        f"{TEXT}embeddings.position_embeddings.weight": (40, WIDTH),
        "blip.vision_proj.weight": (256, WIDTH),
    }

    def linear(name: str, inner: int, outer: int) -> None:
        found.update({f"{name}.weight": (outer, inner), f"{name}.bias": (outer,)})

    def norm(name: str) -> None:
        found.update({f"{name}.weight": (WIDTH,), f"{name}.bias": (WIDTH,)})

    for name in ("norm", "blocks.0.norm1", "blocks.0.norm2"):
        norm(VISION + name)
    linear(f"{VISION}blocks.0.attn.qkv", WIDTH, 3 * WIDTH)
    linear(f"{VISION}blocks.0.attn.proj", WIDTH, WIDTH)
    linear(f"{VISION}blocks.0.mlp.fc1", WIDTH, 4 * WIDTH)
    linear(f"{VISION}blocks.0.mlp.fc2", 4 * WIDTH, WIDTH)
    norm(f"{TEXT}embeddings.LayerNorm")
    layer = f"{TEXT}encoder.layer.0."
    for attention in ("attention", "crossattention"):
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{layer}{attention}.{part}", WIDTH, WIDTH)
        norm(f"{layer}{attention}.output.LayerNorm")
    linear(f"{layer}intermediate.dense", WIDTH, INNER)
    linear(f"{layer}output.dense", INNER, WIDTH)
    norm(f"{layer}output.LayerNorm")
    for index, (inner, outer) in zip(
        (0, 2, 4, 6, 7), ((WIDTH, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)), strict=True
    ):
        linear(f"mlp.layers.{index}", inner, outer)
    return found
