import csv

import pytest
import torch

from tapstudy.models import training
from tapstudy.models.data import ImageSet
from tapstudy.models.training import Recipe, train
from tests.conftest import make_tiny_pipe


@pytest.fixture
def config():
    return dict(make_tiny_pipe().transformer.config)


@pytest.fixture
def images():
    """Ten classes, each one flat grey level."""
    labels = torch.arange(40) % 10
    return ImageSet((labels * 25).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone(), labels)


def read_log(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


RECIPE = Recipe(total_steps=12, batch_size=8, rate_warmup_steps=2, checkpoint_every=4, sample_every=100)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_killed_run_resumes_to_the_same_weights(tmp_path, config, images, monkeypatch):
    whole = train(config, RECIPE, images, folder=tmp_path / "whole", compile_model=False)

    original, calls = training._batches, []

    def killed(*arguments):
        for batch in original(*arguments):
            if len(calls) == 6:
                raise KeyboardInterrupt
            calls.append(1)
            yield batch

    monkeypatch.setattr(training, "_batches", killed)
    with pytest.raises(KeyboardInterrupt):
        train(config, RECIPE, images, folder=tmp_path / "killed", compile_model=False)
    monkeypatch.setattr(training, "_batches", original)
    (tmp_path / "killed" / "partial").mkdir(exist_ok=True)  # as a kill in the middle of writing leaves it
    resumed = train(config, RECIPE, images, folder=tmp_path / "killed", compile_model=False)

    assert torch.equal(weights(resumed), weights(whole))
    logs = [[row["loss"] for row in read_log(tmp_path / name / "loss.csv")] for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 12
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == [
        "checkpoint-000008",
        "checkpoint-000012",
    ]


def test_finished_run_does_nothing_more(tmp_path, config, images):
    first = train(config, RECIPE, images, folder=tmp_path, compile_model=False)
    assert torch.equal(weights(train(config, RECIPE, images, folder=tmp_path, compile_model=False)), weights(first))


def test_learns(tmp_path, config, images):
    recipe = Recipe(total_steps=150, batch_size=32, rate_warmup_steps=10, learning_rate=2e-3, checkpoint_every=150)
    train(config, recipe, images, folder=tmp_path, compile_model=False)
    losses = [float(row["loss"]) for row in read_log(tmp_path / "loss.csv")]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_labels_are_dropped_once_per_image(images):
    recipe = Recipe(total_steps=200, batch_size=50, label_dropout=0.1)
    labels = torch.cat([batch[1] for batch in training._batches(images, recipe, 0, null_label=10)])
    share = (labels == 10).float().mean()
    assert 0.085 < share < 0.115


def test_sample_grid_is_written(tmp_path, config, images):
    recipe = Recipe(total_steps=2, batch_size=8, sample_every=2)
    train(config, recipe, images, folder=tmp_path, compile_model=False)
    assert (tmp_path / "samples-000002.png").stat().st_size > 0


def test_other_recipe_is_refused(tmp_path, config, images):
    train(config, RECIPE, images, folder=tmp_path, compile_model=False)
    with pytest.raises(ValueError, match="another recipe"):
        train(config, Recipe(total_steps=12, batch_size=4), images, folder=tmp_path, compile_model=False)


def test_rate():
    recipe = Recipe(total_steps=100, learning_rate=1.0, rate_warmup_steps=10, decay_share=0.5)
    assert [recipe.rate(step) for step in (0, 9, 50, 75)] == [0.1, 1.0, 1.0, 0.5]
