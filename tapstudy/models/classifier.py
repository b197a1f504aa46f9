"""Small convolutional classifiers: the judges of label accuracy and the feature spaces of the Frechet distance."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional


class Classifier(nn.Module):
    """3x3 convolutions in three stages, then a linear layer on pooled features.

    Input (B, bands, H, W) in [-1, 1]; `features` gives (B, 4 * width), `forward` gives logits (B, classes).

    Args:
        architecture: "plain", two convolutions a stage; "residual", eight convolutions, of which two pairs are
            residual (after the nine-layer net of D. Page, How to train your ResNet, 2018, with a narrower last stage).
        size: pixels along a side of the images that it learnt; 0: not told.
        names: what the classes stand for in a prompt; none: the labels are the classes.
    """

    def __init__(
        self,
        *,
        bands: int = 1,
        classes: int = 10,
        width: int = 32,
        architecture: str = "plain",
        size: int = 0,
        names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "bands": bands, "classes": classes, "width": width, "architecture": architecture, "size": size,
            "names": list(names),
        }  # fmt: skip
        self.stages = nn.Sequential(*_STAGES[architecture](bands, width))
        self.head = nn.Linear(4 * width, classes)

    def features(self, images: Tensor) -> Tensor:
        return self.stages(images).mean(dim=(2, 3))  # (B, 4 * width)

    def feature_maps(self, images: Tensor) -> list[Tensor]:
        """What every convolution of an image gives after its activation, (B, channels, H, W) each."""
        found, x = [], images
        for stage in self.stages:
            x = stage(x)
            if not isinstance(stage, nn.MaxPool2d):
                found.append(x)
        return found

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))  # (B, classes)

    def fitting(self, images: Tensor) -> Tensor:
        """Images as large as those that it learnt; larger ones, by a whole factor, are averaged."""
        factor = images.shape[-1] // (self.config["size"] or images.shape[-1])
        return functional.avg_pool2d(images, factor) if factor > 1 else images

    def class_of(self, prompt: str) -> int | None:
        """Return the class that a prompt begins with the name of, the longest of several; None: it names none."""
        known = [i for i, name in enumerate(self.config["names"]) if f"{prompt} ".startswith(f"{name} ")]
        return max(known, key=lambda i: len(self.config["names"][i]), default=None)

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config, indent=2) + "\n")
        save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def load(cls, folder: str | Path) -> Classifier:
        folder = Path(folder)
        if not (folder / "model.safetensors").is_file():
            raise FileNotFoundError(f"no classifier at {folder}: expected config.json and model.safetensors there")
        model = cls(**json.loads((folder / "config.json").read_text()))
        model.load_state_dict(load_file(folder / "model.safetensors"))
        return model.eval()


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pair = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.pair(x)  # (B, channels, H, W)


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


def _plain(bands: int, width: int) -> list[nn.Module]:
    stages: list[nn.Module] = []
    before = bands
    for channels in (width, 2 * width, 4 * width):
        stages += [_convolution(before, channels), _convolution(channels, channels), nn.MaxPool2d(2)]
        before = channels
    return stages


def _residual(bands: int, width: int) -> list[nn.Module]:
    return [
        _convolution(bands, width),
        *(_convolution(width, 2 * width), nn.MaxPool2d(2), _Residual(2 * width)),
        *(_convolution(2 * width, 4 * width), nn.MaxPool2d(2)),
        *(_convolution(4 * width, 4 * width), nn.MaxPool2d(2), _Residual(4 * width)),
    ]


_STAGES = {"plain": _plain, "residual": _residual}


@torch.inference_mode()
def classify(model: Classifier, images: Tensor, *, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Predicted labels (n,) and features (n, d) of images (n, bands, H, W) in [-1, 1], on the images' device."""
    device = model.head.weight.device
    labels, features = [], []
    for batch in images.split(batch_size):
        found = model.features(batch.to(device))  # (B, d)
        features.append(found.to(images.device))
        labels.append(model.head(found).argmax(dim=-1).to(images.device))
    return torch.cat(labels), torch.cat(features)
