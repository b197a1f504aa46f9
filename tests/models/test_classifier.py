import json

import torch

from tapstudy.models.classifier import Classifier


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
