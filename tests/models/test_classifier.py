import json
from dataclasses import replace
from itertools import product

import pytest
import torch

from tapstudy.models import classifier
from tapstudy.models.classifier import Classifier, classify, train_classifier
from tapstudy.models.data import ImageSet
from tapstudy.models.recipes import CLASSIFIERS


@pytest.fixture(scope="module")
def stripes():
    """Colour images of two classes, which differ in the direction of their stripes, not in any mean."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    columns = 200 * (torch.arange(16) // 2 % 2).expand(16, 16)
    images = torch.where(labels.view(-1, 1, 1) == 0, columns, columns.T).unsqueeze(1).expand(-1, 3, -1, -1)
    return ImageSet((images + torch.randint(0, 40, (64, 3, 16, 16), generator=generator)).to(torch.uint8), labels)


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


def test_residual_size():
    """Eight convolutions and their normalisations by hand; features of 256; 10 MB."""
    model = Classifier(bands=3, width=64, architecture="residual")
    pairs = [(3, 64), (64, 128), (128, 128), (128, 128), (128, 256), (256, 256), (256, 256), (256, 256)]
    assert sum(p.numel() for p in model.parameters()) == sum(9 * a * b + 2 * b for a, b in pairs) + 256 * 10 + 10
    assert model.eval().features(torch.zeros(1, 3, 32, 32)).shape == (1, 256)


def test_old_folders_are_plain(tmp_path):
    """A configuration without architecture, as the first classifiers were stored."""
    model = Classifier(width=4).eval()
    model.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"bands": 1, "classes": 10, "width": 4}))
    image = torch.randn(2, 1, 28, 28)
    assert torch.equal(Classifier.load(tmp_path)(image), model(image))


def test_crops_are_windows_of_the_reflected_image():
    """Every result is found among the 81 windows, mirrored or not, and images of a batch move apart."""
    torch.manual_seed(0)
    images = torch.rand(12, 3, 16, 16)
    moved = classifier.randomly_flipped(classifier._cropped(images))
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
