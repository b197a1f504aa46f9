"""How good a text-to-image model of emoji is: does a judge see what the caption says, and is it more than memory?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tapstudy.models.classifier import Classifier
from tapstudy.models.quality import sample_batches
from tapstudy_training.captioned import BACKGROUNDS, CaptionedImages, caption, emoji_classes

SEED = 70_000  # of the first sample; no other part of the package draws noise from these


@dataclass(frozen=True)
class EmojiQuality:
    """Shares of `count` pictures, each from its own caption and noise.

    Args:
        first, among_20: the emoji of the caption, skin tone included, is the judge's first guess, or one of its first
            twenty.
        background: the border of the picture is nearest to the colour that the caption names.
        name, tone: the judge's first guess has the right name; the right skin tone (None: no emoji here has one).
        nearest: median distance to the nearest training picture on the same background, root mean square over pixels
            and colours in [0, 1].
    """

    count: int
    first: float
    among_20: float
    background: float
    name: float
    tone: float | None
    nearest: float


@dataclass(frozen=True)
class Wanted:
    """A picture that is asked for: which emoji of a set, and the background."""

    index: int
    background: str


def wanted_pictures(images: CaptionedImages, count: int, *, held_out: bool) -> list[Wanted]:
    """`count` pictures, evenly through the trained-on or the held-out emoji, backgrounds going round."""
    chosen = [i for i, one in enumerate(images.emoji) if one.held_out == held_out]
    names = list(BACKGROUNDS)
    return [Wanted(chosen[i * len(chosen) // count], names[i % len(names)]) for i in range(count)]


def sample_pictures(
    pipe: Any,
    images: CaptionedImages,
    wanted: Sequence[Wanted],
    *,
    steps: int = 50,
    guidance_scale: float = 3.0,
    seed: int = SEED,
    batch_size: int = 20,
    folder: Path | None = None,
) -> Tensor:
    """Pictures (n, 3, size, size) in [-1, 1], one per caption; picture i has the noise of `seed` + i.

    `folder` keeps the batches, for a killed run to go on; of these weights and settings alone.
    """
    return sample_batches(
        partial(pipe, num_inference_steps=steps, guidance_scale=guidance_scale),
        [caption(images.emoji[one.index], background=one.background) for one in wanted],
        device=pipe.device.type,
        seed=seed,
        batch_size=batch_size,
        folder=folder,
    )


def judge_pictures(
    pictures: Tensor, images: CaptionedImages, wanted: Sequence[Wanted], judge: Classifier
) -> EmojiQuality:
    """Measure pictures (n, 3, size, size) in [-1, 1] against what was asked for."""
    classes = emoji_classes(images.emoji)
    kinds = list(classes)
    emoji = [images.emoji[one.index] for one in wanted]
    right = torch.tensor([classes[one.name, one.tone] for one in emoji])
    with torch.inference_mode():
        order = judge(judge.fitting(pictures)).argsort(dim=-1, descending=True)[:, :20]  # (n, 20)
    guesses = [kinds[i] for i in order[:, 0].tolist()]
    toned = [i for i, one in enumerate(emoji) if one.tone]
    return EmojiQuality(
        len(wanted),
        first=_share(order[:, 0] == right),
        among_20=_share((order == right[:, None]).any(dim=1)),
        background=_share(
            torch.tensor([found == one.background for found, one in zip(backgrounds_of(pictures), wanted, strict=True)])
        ),
        name=_share(torch.tensor([guess[0] == one.name for guess, one in zip(guesses, emoji, strict=True)])),
        tone=_share(torch.tensor([guesses[i][1] == emoji[i].tone for i in toned])) if toned else None,
        nearest=float(nearest_distances(pictures, images, wanted).median()),
    )


def backgrounds_of(pictures: Tensor) -> list[str]:
    """The named colour that the border of each picture (n, 3, size, size) is nearest to, by its median."""
    edge = torch.cat([pictures[..., 0, :], pictures[..., -1, :], pictures[..., :, 0], pictures[..., :, -1]], dim=-1)
    median = (edge.median(dim=-1).values + 1) * 127.5  # (n, 3)
    colours = torch.tensor(list(BACKGROUNDS.values()), dtype=median.dtype)  # (10, 3)
    names = list(BACKGROUNDS)
    return [names[i] for i in torch.cdist(median, colours).argmin(dim=1).tolist()]


def nearest_distances(pictures: Tensor, images: CaptionedImages, wanted: Sequence[Wanted]) -> Tensor:
    """Distance (n,) of each picture to the nearest trained-on picture on its background, as in `EmojiQuality`."""
    seen = [i for i, one in enumerate(images.emoji) if not one.held_out]
    found = torch.empty(len(wanted))
    for background in BACKGROUNDS:
        mine = [i for i, one in enumerate(wanted) if one.background == background]
        if not mine:
            continue
        asked = pictures[mine].flatten(1) / 2  # (m, d)
        best = torch.full((len(mine),), torch.inf)
        for part in torch.tensor(seen).split(1000):
            real = images.pictures(part, [background] * len(part)).flatten(1) / 2
            best = torch.minimum(best, torch.cdist(asked, real).amin(dim=1))
        found[mine] = best / asked.shape[1] ** 0.5
    return found


def real_pictures(images: CaptionedImages, wanted: Sequence[Wanted]) -> Tensor:
    """What a perfect model might give: the emoji themselves, (n, 3, size, size) in [-1, 1]."""
    return images.pictures([one.index for one in wanted], [one.background for one in wanted])


def _share(right: Tensor) -> float:
    return float(right.float().mean())
