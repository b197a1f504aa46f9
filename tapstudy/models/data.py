"""Labelled image sets for training and judging the embedded models.

A set is a pair of arrays held in memory as uint8: `images` (n, height, width) or (n, height, width, bands) and
`labels` (n,). It comes from a folder of `.npz` files or, without a folder, from the Hugging Face hub.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

HUB_NAMES = {"mnist": "ylecun/mnist"}


@dataclass(frozen=True)
class ImageSet:
    """Images in [-1, 1] with integer labels.

    `images`: uint8 tensor (n, bands, height, width); `labels`: int64 tensor (n,).
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"ImageSet: images must be uint8 (n, bands, height, width), got {self.images.dtype} "
                f"{tuple(self.images.shape)}"
            )
        if self.labels.shape != self.images.shape[:1]:
            raise ValueError(
                f"ImageSet: one label per image, got {tuple(self.labels.shape)} labels for {len(self.images)} images"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 images scaled to [-1, 1], and their labels."""
        return self.images[index].float() / 127.5 - 1, self.labels[index]


def load_images(name: str, split: str, folder: str | Path | None = None) -> ImageSet:
    """The `train` or `test` split of image set `name`.

    With `folder`, reads `{folder}/{name}_{split}.npz` with arrays `images` (n, h, w[, bands]) uint8 and `labels`
    (n,). Without it, fetches the set from the Hugging Face hub (needs the `train` extra and a network).

    Raises FileNotFoundError, ValueError or ConnectionError, each saying what to do.
    """
    if folder is None:
        return _from_hub(name, split)
    path = Path(folder) / f"{name}_{split}.npz"
    if not path.is_file():
        raise FileNotFoundError(
            f"no image set at {path}: expected an .npz with arrays 'images' (n, h, w) uint8 and 'labels' (n,); "
            f"leave the folder out to fetch {name!r} from the Hugging Face hub"
        )
    with np.load(path, allow_pickle=False) as arrays:
        missing = {"images", "labels"} - set(arrays.files)
        if missing:
            raise ValueError(f"{path}: arrays {sorted(missing)} are missing, found {arrays.files}")
        return _image_set(arrays["images"], arrays["labels"])


def _image_set(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> ImageSet:
    if images.ndim == 3:
        images = images[..., None]  # (n, h, w, 1)
    return ImageSet(
        torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))),
        torch.from_numpy(labels.astype(np.int64)),
    )


def _from_hub(name: str, split: str, repository: str | None = None) -> ImageSet:
    """`repository` overrides the hub's name; a local folder of parquet files works too."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"fetching {name!r} needs the 'datasets' package: pip install 'tapstudy[train]', or pass a folder that "
            f"holds {name}_{split}.npz"
        ) from error
    repository = repository or HUB_NAMES[name]
    try:
        table = datasets.load_dataset(repository, split=split)
    except Exception as error:  # datasets raises a different class for each way a download can fail
        raise ConnectionError(
            f"could not fetch {repository!r} from the Hugging Face hub ({type(error).__name__}: {error}); "
            f"pass a folder that holds {name}_{split}.npz instead"
        ) from error
    return _image_set(np.stack([np.asarray(image) for image in table["image"]]), np.asarray(table["label"]))
