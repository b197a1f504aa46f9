"""A small convolutional classifier: the judge of label accuracy and the feature space of the Frechet distance."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from tapstudy.models.data import ImageSet


class Classifier(nn.Module):
    """Six 3x3 convolutions in three stages, then a linear layer on pooled features.

    Input (B, bands, H, W) in [-1, 1]; `features` gives (B, 4 * width), `forward` gives logits (B, classes).
    """

    def __init__(self, *, bands: int = 1, classes: int = 10, width: int = 32) -> None:
        super().__init__()
        self.config = {"bands": bands, "classes": classes, "width": width}
        stages, before = [], bands
        for channels in (width, 2 * width, 4 * width):
            stages += [_convolution(before, channels), _convolution(channels, channels), nn.MaxPool2d(2)]
            before = channels
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.stages(images).mean(dim=(2, 3))  # (B, 4 * width)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images))  # (B, classes)

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


def _convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU())


@torch.inference_mode()
def classify(model: Classifier, images: torch.Tensor, *, batch_size: int = 500) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted labels (n,) and features (n, d) of images (n, bands, H, W) in [-1, 1]."""
    labels, features = [], []
    for batch in images.split(batch_size):
        found = model.features(batch)  # (B, d)
        features.append(found)
        labels.append(model.head(found).argmax(dim=-1))
    return torch.cat(labels), torch.cat(features)


def train_classifier(
    train: ImageSet, *, epochs: int = 6, batch_size: int = 128, learning_rate: float = 2e-3, seed: int = 0
) -> Classifier:
    """AdamW with a one-cycle rate; images are shifted by up to two pixels at random."""
    torch.manual_seed(seed)
    model = Classifier(bands=train.images.shape[1], classes=int(train.labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    steps = epochs * (len(train) // batch_size)
    height, width = train.images.shape[2:]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    with tqdm(total=steps, desc="classifier") as bar:
        for _ in range(epochs):
            for index in torch.randperm(len(train)).split(batch_size)[: steps // epochs]:
                images, labels = train.batch(index)
                dy, dx = torch.randint(0, 5, (2,)).tolist()
                images = F.pad(images, (2, 2, 2, 2), value=-1.0)[..., dy : dy + height, dx : dx + width]
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = F.cross_entropy(model(images), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.set_postfix(loss=f"{loss.item():.3f}")
                bar.update()
    return model.eval()
