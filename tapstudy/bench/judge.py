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
    """Hold a classifier of a model's images, which are (batch, band, row, column) in [0, 1]."""

    classifier: Classifier

    @classmethod
    @lru_cache(maxsize=2)
    def of(cls, model: str) -> Judge:
        """Load the judge of a model; of images like those of no data set that of digits, which then says little."""
        try:
            return cls(load_classifier(model.removesuffix(UNTRAINED)))
        except ValueError:
            return cls(load_classifier())

    def features(self, images: Tensor) -> Tensor:
        """Tell what the last layer sees, (batch, feature)."""
        return classify(self.classifier, self.classifier.fitting(2 * images - 1))[1]

    def correct(self, images: Tensor, labels: Sequence[Condition]) -> Tensor:
        """Tell whether an image is taken for what it should be, 1 or 0, (batch,); NaN where a prompt names no class."""
        found = classify(self.classifier, self.classifier.fitting(2 * images - 1))[0]
        classes = [self.classifier.class_of(label) if isinstance(label, str) else label for label in labels]
        wanted = torch.tensor([torch.nan if one is None else one for one in classes], dtype=torch.float64)  # (batch,)
        return torch.where(wanted.isnan(), wanted, (found == wanted).double())
