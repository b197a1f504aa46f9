"""Judges images by what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from tapstudy.bench.conditions import Condition
from tapstudy.bench.image_set import pipe_of, trained_model
from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.embedded import load_classifier
from tapstudy.models.sources import is_embedded


@dataclass(frozen=True)
class Judge:
    """Hold a classifier of a model's images, which are (batch, band, row, column) in [0, 1]."""

    classifier: Classifier

    @classmethod
    @lru_cache(maxsize=2)
    def of(cls, model: str) -> Judge | None:
        """Load the judge of a model; None of pipelines of another kind than the embedded ones.

        Of images like those of no data set it is that of digits, which then says little.
        """
        if not is_embedded(trained_model(model)[0]):
            return None
        try:
            return cls(load_classifier(pipe_of(model)))
        except ValueError:
            return cls(load_classifier())

    def features(self, images: Tensor) -> Tensor:
        """Tell what the last layer sees, (batch, feature)."""
        return classify(self.classifier, self.classifier.fitting(2 * images - 1))[1]

    def perceptual_distance(self, images: Tensor, reference: Tensor) -> Tensor:
        """Compare images as the judge's convolutions see them, 0 for equal ones, (batch,).

        LPIPS without learnt weights (R. Zhang et al., CVPR 2018): feature vectors are scaled to length 1, squared
        differences summed over channels, averaged over positions, then over layers. Only comparable between images of
        one judge.
        """
        with torch.inference_mode():
            seen = [self.classifier.feature_maps(self.classifier.fitting(2 * x - 1)) for x in (images, reference)]
            layers = [
                (functional.normalize(a) - functional.normalize(b)).square().sum(dim=1).mean(dim=(1, 2))
                for a, b in zip(*seen, strict=True)
            ]
        return torch.stack(layers).mean(dim=0)

    def correct(self, images: Tensor, labels: Sequence[Condition]) -> Tensor:
        """Tell whether an image is taken for what it should be, 1 or 0, (batch,); NaN where a prompt names no class."""
        found = classify(self.classifier, self.classifier.fitting(2 * images - 1))[0]
        classes = [self.classifier.class_of(label) if isinstance(label, str) else label for label in labels]
        wanted = torch.tensor([torch.nan if one is None else one for one in classes], dtype=torch.float64)  # (batch,)
        return torch.where(wanted.isnan(), wanted, (found == wanted).double())
