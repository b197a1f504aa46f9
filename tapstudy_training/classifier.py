"""Trains the judges: the classifiers that label accuracy and the Frechet distance are measured with."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from tapstudy.models.classifier import Classifier
from tapstudy.models.data import LabelledImages
from tapstudy_training.batches import randomly_flipped
from tapstudy_training.recipes import CLASSIFIERS, ClassifierRecipe


def train_classifier(
    train: LabelledImages,
    recipe: ClassifierRecipe = CLASSIFIERS["mnist"],
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Classifier:
    """Train a judge by its recipe, the images in the memory of `device`.

    Raises ValueError when there are fewer images than one batch.
    """
    if len(train) < recipe.batch_size:
        raise ValueError(f"a batch takes {recipe.batch_size} images, the training set has {len(train)}")
    torch.manual_seed(seed)
    model = Classifier(
        bands=train.images.shape[1],
        classes=int(train.labels.max()) + 1,
        width=recipe.width,
        architecture=recipe.architecture,
        size=train.images.shape[-1],
        names=train.names,
    )
    device = torch.device(device)
    model, train = model.to(device), train.to(device)
    optimizer = _optimizer(model, recipe)
    steps = recipe.epochs * (len(train) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, total_steps=steps)
    augment = {"shift": _shifted, "crop": _cropped, "crop-flip": lambda images: randomly_flipped(_cropped(images))}[
        recipe.augment
    ]
    with tqdm(total=steps, desc="classifier", mininterval=1) as bar:
        for _ in range(recipe.epochs):
            for index in torch.randperm(len(train)).split(recipe.batch_size)[: steps // recipe.epochs]:
                images, labels = train.batch(index.to(device))
                images = augment(images)
                if device.type == "cuda":
                    images = images.contiguous(memory_format=torch.channels_last)  # what tensor cores convolve fastest
                with torch.autocast(device.type, dtype=torch.bfloat16):
                    loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
    return model.cpu().eval()


def _optimizer(model: Classifier, recipe: ClassifierRecipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay)
    return torch.optim.SGD(model.parameters(), lr=rate, weight_decay=decay, momentum=0.9, nesterov=True)


def _shifted(images: Tensor, by: int = 2) -> Tensor:
    """All images (B, bands, H, W) moved by the same random step, background coming in."""
    height, width = images.shape[2:]
    dy, dx = torch.randint(0, 2 * by + 1, (2,)).tolist()
    return F.pad(images, (by, by, by, by), value=-1.0)[..., dy : dy + height, dx : dx + width]


def _cropped(images: Tensor, by: int = 4) -> Tensor:
    """Every image (B, bands, H, W) moved by its own random step, the border reflected."""
    count, _, height, width = images.shape
    padded = F.pad(images, (by, by, by, by), mode="reflect")
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, bands, 2 by + 1, 2 by + 1, H, W), a view
    dy, dx = torch.randint(0, 2 * by + 1, (2, count), device=images.device)
    return windows[torch.arange(count, device=images.device), :, dy, dx]  # (B, bands, H, W)
