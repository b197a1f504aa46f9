"""Labelled image sets for training and judging the embedded models.

A set is a pair of arrays held in memory as uint8: `images` (n, height, width) or (n, height, width, bands) and
`labels` (n,). It comes from a folder of `.npz` files (colour images may be coded as JPEG there) or, without a folder,
from the Hugging Face hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tapstudy.extras import need


@dataclass(frozen=True)
class DataSet:
    """A public image set: where the hub has it, under which column, its images' shape, and whose it is.

    A set with captions in place of labels is none of the hub's: `tapstudy_training.captioned.load_emoji` reads it.
    """

    hub: str
    column: str
    bands: int
    size: int
    train: str
    credit: str

    @property
    def labelled(self) -> bool:
        """Whether its images have class labels."""
        return bool(self.hub)


DATA_SETS = {
    "mnist": DataSet(
        "ylecun/mnist",
        "image",
        bands=1,
        size=28,
        train="the 60,000 MNIST training images",
        credit="MNIST: Y. LeCun, C. Cortes, C. Burges, CC BY-SA 3.0.",
    ),
    "cifar10": DataSet(
        "uoft-cs/cifar10",
        "img",
        bands=3,
        size=32,
        train="the 50,000 CIFAR-10 training images",
        credit="CIFAR-10: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.",
    ),
    "emoji": DataSet(
        "",
        "",
        bands=3,
        size=64,
        train="6,922 emoji of two styles, drawn on plain backgrounds half as large",
        credit=(
            "Noto Emoji, copyright Google, Apache License 2.0; Twemoji graphics, copyright Twitter, Inc and other "
            "contributors, CC-BY 4.0 (https://creativecommons.org/licenses/by/4.0/), both changed: laid on plain "
            "backgrounds."
        ),
    ),
}


@dataclass(frozen=True)
class LabelledImages:
    """Images in [-1, 1] with integer labels.

    `images`: uint8 tensor (n, bands, height, width); `labels`: int64 tensor (n,); `note`: what to know of the copy;
    `names`: what the labels stand for, if they are no classes of digits or the like.
    """

    images: torch.Tensor
    labels: torch.Tensor
    note: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"LabelledImages: images must be uint8 (n, bands, height, width), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"LabelledImages: one label per image, got {tuple(self.labels.shape)} labels for "
                f"{len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 images scaled to [-1, 1], and their labels."""
        return self.images[index].float() / 127.5 - 1, self.labels[index]

    def to(self, device: torch.device | str) -> LabelledImages:
        """Return the set in the memory of `device`."""
        return LabelledImages(self.images.to(device), self.labels.to(device), self.note, self.names)


def load_images(name: str, split: str, folder: str | Path | None = None) -> LabelledImages:
    """Return the `train` or `test` split of image set `name`.

    With `folder`, reads `{folder}/{name}_{split}.npz` with arrays `images` (n, h, w[, bands]) uint8 and `labels`
    (n,), or `{folder}/{name}_{split}_jpeg.npz` with `jpeg` (bytes,) uint8, `offsets` (n + 1,) and `labels` (n,), image
    i being the JPEG file `jpeg[offsets[i]:offsets[i + 1]]`. Without it, fetches the set from the Hugging Face hub
    (needs the `train` extra and a network).

    Raises FileNotFoundError, ValueError or ConnectionError, each saying what to do.
    """
    known = [known for known, data_set in DATA_SETS.items() if data_set.labelled]
    if name not in known:
        raise ValueError(f"no image set {name!r} with labels: the known ones are {', '.join(known)}")
    if folder is None:
        return _from_hub(name, split)
    path, coded = (Path(folder) / f"{name}_{split}{kind}.npz" for kind in ("", "_jpeg"))
    if path.is_file():
        arrays = _arrays(path, "images", "labels")
        return _image_set(arrays["images"], arrays["labels"])
    if coded.is_file():
        arrays = _arrays(coded, "jpeg", "offsets", "labels")
        return _image_set(
            _decoded(coded, arrays["jpeg"], arrays["offsets"]), arrays["labels"], note="from JPEG files, slightly lossy"
        )
    raise FileNotFoundError(
        f"no image set at {path}: expected an .npz with arrays 'images' (n, h, w[, bands]) uint8 and 'labels' (n,), or "
        f"{coded.name} with JPEG files; leave the folder out to fetch {name!r} from the Hugging Face hub"
    )


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(path, allow_pickle=False) as file:
        missing = set(names) - set(file.files)
        if missing:
            raise ValueError(f"{path}: arrays {sorted(missing)} are missing, found {file.files}")
        return {name: file[name] for name in names}


def _decoded(path: Path, jpeg: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Images (n, h, w, 3) of JPEG files laid end to end."""
    images = []
    for i, (first, last) in enumerate(pairwise(offsets.tolist())):
        try:
            images.append(np.asarray(Image.open(BytesIO(jpeg[first:last].tobytes())).convert("RGB")))
        except OSError as error:
            raise ValueError(f"{path}: image {i} is no JPEG file ({error}); get the file anew") from error
    return np.stack(images)


def _image_set(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], note: str = "") -> LabelledImages:
    if images.ndim == 3:
        images = images[..., None]  # (n, h, w, 1)
    return LabelledImages(
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels.astype(np.int64)),
        note,
    )


def _from_hub(name: str, split: str, repository: str | None = None) -> LabelledImages:
    """`repository` overrides the hub's name; a local folder of parquet files works too."""
    need(f"fetching {name} (a folder that holds {name}_{split}.npz needs none)", "datasets")
    import datasets

    repository = repository or DATA_SETS[name].hub
    try:
        table = datasets.load_dataset(repository, split=split)
    except Exception as error:  # datasets raises a different class for each way a download can fail
        raise ConnectionError(
            f"could not fetch {repository!r} from the Hugging Face hub ({type(error).__name__}: {error}); "
            f"pass a folder that holds {name}_{split}.npz instead"
        ) from error
    return _image_set(
        np.stack([np.asarray(image) for image in table[DATA_SETS[name].column]]), np.asarray(table["label"])
    )
