"""Small stand-ins for the emoji: plain shapes with names, and a tiny text-to-image model of them."""

import json
from dataclasses import replace
from io import BytesIO

import numpy as np
import torch
from PIL import Image

from tapstudy_training.captioned import PACKAGES, TONES, CaptionedImages, Emoji
from tapstudy_training.recipes import MODELS
from tapstudy_training.tasks import TextTask

FLUX = MODELS["emoji-flux"]
TINY = replace(
    FLUX,
    transformer={
        **FLUX.transformer,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 6, 6),
    },
    text_encoder={**FLUX.text_encoder, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2},
    recipe=replace(
        FLUX.recipe, total_steps=6, half_size_steps=3, batch_size=4, checkpoint_every=2, rate_warmup_steps=2
    ),
    size=32,
    count=3,
)


def shapes(size=64):
    """Twelve emoji: a square in a colour of its own, four of them with skin tones, one of these held out."""
    emoji = [Emoji(name, "noto", None, "food-fruit") for name in ("apple", "pear", "plum", "fig")]
    emoji += [Emoji("nurse", style, tone, "person-role") for style in ("noto", "twemoji") for tone in ("light", "dark")]
    emoji += [
        Emoji("cook", "noto", "dark", "person-role", held_out=True),
        Emoji("cook", "noto", "light", "person-role"),
    ]
    emoji += [Emoji("chad flag", "noto", None, "country-flag"), Emoji("family man girl", "noto", None, "family")]
    images = torch.zeros(len(emoji), 4, size, size, dtype=torch.uint8)
    part = slice(size // 4, 3 * size // 4)
    for i, image in enumerate(images):
        image[:3, part, part] = torch.tensor([20 * i, 255 - 20 * i, 37 * i % 256], dtype=torch.uint8)[:, None, None]
        image[3, part, part] = 255
    return CaptionedImages(images, tuple(emoji))


def tiny_task(images=None, **changes):
    """The task of `TINY`."""
    spec = replace(TINY, **changes)
    return TextTask(
        spec.transformer,
        spec.text_encoder,
        spec.caption_length,
        images or shapes(spec.size),
        size=spec.size,
        smooth_sigma=spec.recipe.smooth_sigma,
    )


def tiny_pipe(seed=0):
    """A `TextPipeline` with random weights."""
    task = tiny_task()
    torch.manual_seed(seed)
    return quiet(task.pipeline(task.build().eval()))


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def write_archive(folder, images):
    """`emoji64.npz` and `captions.json` with the images of a set."""
    files = []
    for image in images.images:
        buffer = BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy(), "RGBA").save(buffer, "webp", lossless=True, exact=True)
        files.append(buffer.getvalue())
    offsets = np.cumsum([0, *map(len, files)])
    np.savez(folder / "emoji64.npz", blob=np.frombuffer(b"".join(files), np.uint8), offsets=offsets)
    entries = [
        {
            "name": one.name,
            "tone": one.tone,
            "style": one.style,
            "subcategory": one.subcategory,
            "split": "test" if one.held_out else "train",
        }
        for one in images.emoji
    ]
    (folder / "captions.json").write_text(json.dumps(entries))


def write_packages(folder):
    """Three emoji as the npm packages keep them: one plain, one in all tones and of two tones, one without an image."""
    entries = [
        {"name": "RED APPLE", "image": "1f34e.png", "subcategory": "food-fruit"},
        {
            "name": "RAISED BACK OF HAND",
            "image": "1f91a.png",
            "subcategory": "hand-fingers-open",
            "skin_variations": {
                **{tone: {"image": f"1f91a-{tone.lower()}.png"} for tone in TONES},
                "1F3FB-1F3FC": {"image": "1f91a-1f3fb-1f3fc.png"},
            },
        },
        {"name": "São Tomé & Príncipe Flag", "image": "1f1f8.png", "subcategory": "country-flag"},
    ]
    for number, (package, inside) in enumerate(PACKAGES.values()):
        root = folder / "node_modules" / package
        (root / "img" / inside / "64").mkdir(parents=True)
        (root / "emoji.json").write_text(json.dumps(entries))
        files = ["1f34e.png", "1f91a.png", "1f91a-1f3fb-1f3fc.png", *(f"1f91a-{tone.lower()}.png" for tone in TONES)]
        for i, file in enumerate(files):
            pixels = np.full((64, 64, 4), 10 * i + number, np.uint8)
            Image.fromarray(pixels, "RGBA").save(root / "img" / inside / "64" / file)
