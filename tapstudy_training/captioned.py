"""Captioned emoji: images with transparency, words for what they show, and the pictures and captions made of both.

A picture is an emoji laid on a plain background, whole or half as large in a corner. Its caption says all of it:
`red apple noto on a teal background`, `nurse dark skin tone twemoji small top left on a black background`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tapstudy.models.data import LabelledImages

BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "grey": (128, 128, 128),
    "red": (215, 45, 45),
    "orange": (245, 145, 35),
    "yellow": (250, 215, 60),
    "green": (60, 160, 75),
    "teal": (0, 140, 140),
    "blue": (50, 95, 205),
    "purple": (130, 65, 170),
}
POSITIONS = ("top left", "top right", "bottom left", "bottom right")
TONES = {"1F3FB": "light", "1F3FC": "medium-light", "1F3FD": "medium", "1F3FE": "medium-dark", "1F3FF": "dark"}
# style in a caption: the public npm package with its images, and the folder of these inside
PACKAGES = {"noto": ("emoji-datasource-google", "google"), "twemoji": ("emoji-datasource-twitter", "twitter")}
HELD_OUT = Path(__file__).with_name("emoji_held_out.txt")


@dataclass(frozen=True)
class Emoji:
    """What an image shows.

    Args:
        name: lower-case words.
        style: "noto" or "twemoji".
        tone: of the skin, if it was chosen.
        subcategory: the Unicode one, such as "food-fruit".
        held_out: kept from training.
    """

    name: str
    style: str
    tone: str | None = None
    subcategory: str = ""
    held_out: bool = False

    @property
    def words(self) -> str:
        """Name and skin tone."""
        return f"{self.name} {self.tone} skin tone" if self.tone else self.name

    @property
    def weight(self) -> float:
        """How often it is drawn: flags, told apart by names alone, and families less often than the rest."""
        return {"country-flag": 0.3, "subdivision-flag": 0.3, "family": 0.5}.get(self.subcategory, 1.0)


def caption(emoji: Emoji, *, background: str | None, position: str | None = None, style: bool = True) -> str:
    """Say what a picture shows; parts that are left out are not said."""
    parts = [emoji.words, emoji.style if style else "", f"small {position}" if position else ""]
    parts.append(f"on a {background} background" if background else "")
    return " ".join(part for part in parts if part)


def words_of(emoji: Sequence[Emoji]) -> list[str]:
    """All words that captions of these can have, sorted."""
    said = {word for one in emoji for word in f"{one.words} {one.style}".split()}
    said |= {word for text in (*BACKGROUNDS, *POSITIONS, *TONES.values(), "small on a background skin tone")
             for word in text.split()}  # fmt: skip
    return sorted(said)


def emoji_classes(emoji: Sequence[Emoji]) -> dict[tuple[str, str | None], int]:
    """A number for every name with every skin tone, whatever the style, in the order of a set."""
    return {kind: i for i, kind in enumerate(dict.fromkeys((one.name, one.tone) for one in emoji))}


@dataclass(frozen=True)
class CaptionedImages:
    """Images with transparency and what they show.

    Args:
        images: uint8 tensor (n, 4, size, size), colours not multiplied by alpha.
        emoji: one per image.
    """

    images: Tensor
    emoji: tuple[Emoji, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.shape[1] != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"CaptionedImages: images must be uint8 (n, 4, size, size), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if len(self.images) != len(self.emoji):
            raise ValueError(
                f"CaptionedImages: one description per image, got {len(self.emoji)} for {len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.emoji)

    def to(self, device: torch.device | str) -> CaptionedImages:
        """The set in the memory of `device`."""
        return CaptionedImages(self.images.to(device), self.emoji)

    def part(self, *, held_out: bool) -> CaptionedImages:
        """The images that training may see, or those kept from it."""
        chosen = [i for i, one in enumerate(self.emoji) if one.held_out == held_out]
        return CaptionedImages(self.images[chosen], tuple(self.emoji[i] for i in chosen))

    def pictures(
        self, index: Tensor | Sequence[int], backgrounds: Sequence[str], positions: Sequence[str | None] | None = None
    ) -> Tensor:
        """Float32 pictures (n, 3, size, size) in [-1, 1] of the emoji at `index` on plain backgrounds."""
        rgba = self.images[index].float() / 255  # (n, 4, size, size)
        alpha = rgba[:, 3:]
        layers = torch.cat([rgba[:, :3] * alpha, alpha], dim=1)
        half = layers.shape[-1] // 2
        for i, position in enumerate(positions or ()):
            if position is not None:
                small = F.avg_pool2d(layers[i], 2)  # (4, size / 2, size / 2)
                top, left = half * ("bottom" in position), half * ("right" in position)
                layers[i] = 0
                layers[i, :, top : top + half, left : left + half] = small
        colours = torch.tensor([BACKGROUNDS[name] for name in backgrounds], device=rgba.device) / 255  # (n, 3)
        return 2 * (layers[:, :3] + colours[:, :, None, None] * (1 - layers[:, 3:])) - 1

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Random pictures (count, 3, size, size) in [-1, 1] and their captions.

        One in seven emoji is small and in a corner, if its caption then has at most sixteen words; three captions in
        ten leave the style out, one in ten leaves out the background.
        """
        weights = torch.tensor([one.weight for one in self.emoji])
        index = torch.multinomial(weights, count, replacement=True, generator=generator)  # (count,)
        numbers = torch.rand(count, 5, generator=generator).tolist()
        names = list(BACKGROUNDS)
        backgrounds: list[str] = []
        positions: list[str | None] = []
        captions: list[str] = []
        for i, (colour, small, place, said, styled) in zip(index.tolist(), numbers, strict=True):
            fits = len(self.emoji[i].words.split()) <= 7
            backgrounds.append(names[int(colour * len(names))])
            positions.append(POSITIONS[int(place * len(POSITIONS))] if fits and small < 1 / 7 else None)
            captions.append(
                caption(
                    self.emoji[i],
                    background=backgrounds[-1] if said >= 0.1 else None,
                    position=positions[-1],
                    style=styled >= 0.3,
                )
            )
        return self.pictures(index.to(self.images.device), backgrounds, positions), captions


def renderings(images: CaptionedImages, *, each: int, seed: int) -> LabelledImages:
    """Every emoji `each` times on random backgrounds, half as large, with the number of its class: for the judge."""
    classes = emoji_classes(images.emoji)
    generator = torch.Generator().manual_seed(seed)
    names, parts = list(BACKGROUNDS), []
    for index in torch.arange(len(images)).repeat(each).split(500):
        drawn = torch.randint(len(names), (len(index),), generator=generator).tolist()
        small = F.avg_pool2d(images.pictures(index, [names[i] for i in drawn]), 2)
        parts.append(((small + 1) * 127.5).round().to(torch.uint8))
    labels = torch.tensor([classes[one.name, one.tone] for one in images.emoji]).repeat(each)
    words = {classes[one.name, one.tone]: one.words for one in images.emoji}
    return LabelledImages(torch.cat(parts), labels, names=tuple(words[i] for i in range(len(words))))


def load_emoji(folder: str | Path) -> CaptionedImages:
    """Read emoji of 64 x 64 pixels with their names.

    Args:
        folder: one of two kinds. With `emoji64.npz` (`blob`, the bytes of image files laid end to end, and `offsets`)
            and `captions.json` (a list of `name`, `tone`, `style`, `subcategory`, `split`). Or with `node_modules` of
            the public packages, made by `npm install emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0`.

    Raises:
        FileNotFoundError, ValueError: each saying what to do.
    """
    folder = Path(folder).expanduser()
    if (folder / "emoji64.npz").is_file():
        return _from_archive(folder)
    modules = folder / "node_modules" if (folder / "node_modules").is_dir() else folder
    if all((modules / package).is_dir() for package, _ in PACKAGES.values()):
        return _from_packages(modules)
    packages = " ".join(f"{package}@16.0.0" for package, _ in PACKAGES.values())
    raise FileNotFoundError(
        f"no emoji in {folder}: expected emoji64.npz with captions.json, or node_modules; "
        f"`npm install --prefix {folder} {packages}` fetches the public images"
    )


def _from_archive(folder: Path) -> CaptionedImages:
    try:
        entries = json.loads((folder / "captions.json").read_text())
        with np.load(folder / "emoji64.npz", allow_pickle=False) as file:
            blob, offsets = file["blob"], file["offsets"].tolist()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the emoji in {folder} cannot be read ({error}); get the files anew") from error
    if len(offsets) != len(entries) + 1:
        raise ValueError(f"{folder}: {len(offsets) - 1} images and {len(entries)} captions; get the files anew")
    images = [
        _pixels(BytesIO(blob[a:b].tobytes()), f"{folder}: image {i}") for i, (a, b) in enumerate(pairwise(offsets))
    ]
    emoji = [
        Emoji(one["name"], one["style"], one["tone"], one["subcategory"], held_out=one["split"] == "test")
        for one in entries
    ]
    return CaptionedImages(torch.stack(images), tuple(emoji))


def _from_packages(modules: Path) -> CaptionedImages:
    held_out = set(HELD_OUT.read_text().split())
    images, emoji = [], []
    for style, (package, inside) in PACKAGES.items():
        entries = json.loads((modules / package / "emoji.json").read_text())
        for entry, file, tone in _variations(entries):
            path = modules / package / "img" / inside / "64" / file
            if path.is_file():
                images.append(_pixels(path, str(path)))
                name = _words(entry["name"], toned=bool(entry.get("skin_variations")))
                emoji.append(Emoji(name, style, tone, entry["subcategory"], held_out=file in held_out))
    if not images:
        raise ValueError(f"the packages in {modules} hold no images of 64 x 64 pixels; install them anew")
    return CaptionedImages(torch.stack(images), tuple(emoji))


def _variations(entries: Sequence[Mapping[str, Any]]) -> list[tuple[Mapping[str, Any], str, str | None]]:
    """Every emoji with its image file and skin tone; couples of two tones are left out."""
    found: list[tuple[Mapping[str, Any], str, str | None]] = []
    for entry in entries:
        found.append((entry, entry["image"], None))
        for key, variation in entry.get("skin_variations", {}).items():
            if key in TONES:
                found.append((entry, variation["image"], TONES[key]))
    return found


def _words(name: str, *, toned: bool) -> str:
    """A Unicode name in lower case, plain letters and hyphens; small words go where it and its tone pass ten words."""
    plain = unicodedata.normalize("NFKD", name.lower()).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9& -]", " ", plain.replace("'", "")).split()
    for small in ("and", "with"):
        if len(words) + 3 * toned > 10:
            words = [word for word in words if word != small]
    return " ".join(words)


def _pixels(file: Any, what: str) -> Tensor:
    """The image in a file, uint8 (4, size, size)."""
    try:
        image = Image.open(file).convert("RGBA")
    except OSError as error:
        raise ValueError(f"{what} is no image file ({error}); get it anew") from error
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
