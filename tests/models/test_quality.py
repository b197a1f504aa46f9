from functools import partial

import pytest
import torch

from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.data import LabelledImages
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.models.quality import SEED, Judge, frechet_distance, measure_quality, sample_batches
from tapstudy_training import make
from tapstudy_training.classifier import train_classifier
from tapstudy_training.recipes import ClassifierRecipe


def test_frechet_distance_of_known_gaussians():
    """N(0, I) and N(m, s^2 I): |m|^2 + d (1 - s)^2."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    b = 2 * torch.randn(200_000, 3, generator=generator, dtype=torch.float64) + 1
    assert frechet_distance(a, b) == pytest.approx(3 + 3, rel=0.01)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="the second set has 3 rows of 4 features"):
        frechet_distance(torch.randn(9, 4), torch.randn(3, 4))


@pytest.fixture(scope="module")
def judged():
    """A classifier trained on two flat grey levels."""
    labels = torch.arange(256) % 2
    noise = torch.randint(0, 40, (256, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = LabelledImages((noise + 200 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels)
    return train_classifier(images, ClassifierRecipe(epochs=8, batch_size=32, width=8)), images


def test_classifier_learns_and_round_trips(judged, tmp_path):
    model, images = judged
    pixels, labels = images.batch(torch.arange(len(images)))
    found, features = classify(model, pixels)
    assert (found == labels).all()
    assert features.shape == (256, 32)
    model.save(tmp_path)
    again = Classifier.load(tmp_path)
    assert torch.equal(classify(again, pixels)[1], features)
    with pytest.raises(FileNotFoundError, match="no classifier at"):
        Classifier.load(tmp_path / "absent")


def test_measure_quality(judged, tiny_pipe):
    model, images = judged
    quality, samples = measure_quality(tiny_pipe, Judge(model, images), count=200, steps=2)
    assert samples.shape == (200, 1, 8, 8)
    assert quality.classifier_accuracy == 1
    assert 0 <= quality.label_accuracy <= 0.2  # labels 2 to 9 are unknown to this judge
    assert quality.frechet_distance > 0


def test_samples_are_kept_batch_by_batch(judged, tiny_pipe, tmp_path):
    judge = Judge(*judged)
    found, samples = measure_quality(tiny_pipe, judge, count=200, steps=2, folder=tmp_path)
    batches = sorted(tmp_path.glob("*/*"))
    assert [batch.name.split("-")[0] for batch in batches] == ["0", "100", "150", "50"]
    batches[1].unlink()
    again, same = measure_quality(tiny_pipe, judge, count=200, steps=2, folder=tmp_path)
    assert again == found
    assert torch.equal(same, samples)
    other = sample_batches(partial(tiny_pipe, num_inference_steps=2), torch.full((50,), 3), device="cpu", seed=SEED,
                           batch_size=50, folder=batches[0].parent)  # fmt: skip
    assert not torch.equal(other, samples[:50])  # the same noise for other labels is kept beside
    measure_quality(tiny_pipe, judge, count=200, steps=1, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # other settings have a folder of their own


def test_a_model_is_held_against_what_it_was(judged, tiny_pipe, monkeypatch):
    monkeypatch.setattr(make, "measure_quality", partial(measure_quality, steps=4))
    pipe = LabelPipeline(tiny_pipe.transformer, tiny_pipe.scheduler, guidance_stop=0.5)
    pipe.set_progress_bar_config(disable=True)
    pixels = torch.randint(0, 256, (200, 1, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    real = LabelledImages(pixels, torch.arange(200) % 10)
    rows = make.against_before(pipe, pipe, Judge(*judged), real=real, count=150, stops=(0.5, 0.0))
    assert [(name, row.guidance_stop) for name, row in rows] == [
        ("this model", 0.5), ("its initial weights", 0.5), ("this model", 0.0), ("its initial weights", 0.0),
        ("training images", 0.0),
    ]  # fmt: skip
    assert rows[0][1] == rows[1][1]  # the same weights
    assert rows[0][1].frechet_distance != rows[2][1].frechet_distance
    assert rows[4][1].guidance_scale == 0
