"""Judges images by what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tapstudy.bench.image_set import UNTRAINED, Condition
from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.embedded import load_classifier


@dataclass(frozen=True)
class Judge:
    """A classifier of a model's images, which are (batch, band, row, column) in [0, 1]."""

    classifier: Classifier

    @classmethod
    @lru_cache(maxsize=2)
    def of(cls, model: str) -> Judge:
        """That of a model; of images like those of no data set that of digits, which then says little."""
        try:
            return cls(load_classifier(model.removesuffix(UNTRAINED)))
        except ValueError:
            return cls(load_classifier())

    def features(self, images: Tensor) -> Tensor:
        """What the last layer sees, (batch, feature)."""
        return classify(self.classifier, 2 * images - 1)[1]

    def correct(self, images: Tensor, labels: Sequence[Condition]) -> Tensor:
        """Whether an image is taken for what it should be, 1 or 0, (batch,)."""
        found = classify(self.classifier, 2 * images - 1)[0]
        return (found == torch.tensor(labels)).double()
