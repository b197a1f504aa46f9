from dataclasses import replace
from itertools import product

import pytest
import torch

from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.data import LabelledImages
from tapstudy_training import batches, classifier
from tapstudy_training.classifier import train_classifier
from tapstudy_training.recipes import CLASSIFIERS


@pytest.fixture(scope="module")
def stripes():
    """Colour images of two classes, which differ in the direction of their stripes, not in any mean."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    columns = 200 * (torch.arange(16) // 2 % 2).expand(16, 16)
    images = torch.where(labels.view(-1, 1, 1) == 0, columns, columns.T).unsqueeze(1).expand(-1, 3, -1, -1)
    return LabelledImages((images + torch.randint(0, 40, (64, 3, 16, 16), generator=generator)).to(torch.uint8), labels)


SMALL = replace(CLASSIFIERS["cifar10"], width=8, epochs=8, batch_size=16, learning_rate=0.1)


def test_residual_learns_and_round_trips(stripes, tmp_path):
    """From loss ln 2 of a guess to all right, by its own recipe: SGD, crops, flips, smoothed labels."""
    model = train_classifier(stripes, SMALL)
    images, labels = stripes.batch(torch.arange(len(stripes)))
    found, features = classify(model, images)
    assert (found == labels).float().mean() > 0.95
    with torch.no_grad():
        assert torch.nn.functional.cross_entropy(model(images), labels) < 0.5 * torch.log(torch.tensor(2.0))
    assert features.shape == (64, 32)
    model.save(tmp_path)
    assert torch.equal(classify(Classifier.load(tmp_path), images)[1], features)
    assert torch.equal(classify(train_classifier(stripes, SMALL), images)[1], features), "the seed fixes everything"


def test_crops_are_windows_of_the_reflected_image():
    """Every result is found among the 81 windows, mirrored or not, and images of a batch move apart."""
    torch.manual_seed(0)
    images = torch.rand(12, 3, 16, 16)
    moved = batches.randomly_flipped(classifier._cropped(images))
    padded = torch.nn.functional.pad(images, (4, 4, 4, 4), mode="reflect")
    places = []
    for i in range(12):
        for y, x, mirrored in product(range(9), range(9), (False, True)):
            window = padded[i, :, y : y + 16, x : x + 16]
            if torch.equal(window.flip(-1) if mirrored else window, moved[i]):
                places.append((y, x, mirrored))
    assert len(places) == 12
    assert len(set(places)) > 6
    assert {mirrored for _, _, mirrored in places} == {False, True}


def test_too_few_images(stripes):
    with pytest.raises(ValueError, match="a batch takes 128 images, the training set has 64"):
        train_classifier(stripes)
