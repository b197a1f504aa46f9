import csv
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tapstudy.models.data import LabelledImages
from tapstudy_training import training
from tapstudy_training.checkpoint import start
from tapstudy_training.recipes import Recipe
from tapstudy_training.tasks import LabelTask
from tapstudy_training.training import train
from tests.conftest import make_tiny_pipe


@pytest.fixture
def config():
    return dict(make_tiny_pipe().transformer.config)


@pytest.fixture
def images():
    """Ten classes, each one flat grey level."""
    labels = torch.arange(40) % 10
    return LabelledImages((labels * 25).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone(), labels)


def read_log(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


RECIPE = Recipe(total_steps=12, batch_size=8, rate_warmup_steps=2, checkpoint_every=4, sample_every=100)
# what cifar10-dit does otherwise
COLOUR = replace(RECIPE, flip=True, zero_gates=True, on_device=True, log_every=3)


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.modules.parameters()])


def test_killed_run_resumes_to_the_same_weights(tmp_path, config, images):
    """The log has steps that the last checkpoint has not."""
    recipe = replace(COLOUR, log_every=1)
    whole = train(LabelTask(config, images), recipe, folder=tmp_path / "whole", compile_model=False)

    class Killed(LabelTask):
        def batch(self, recipe, step):
            if step == 6:
                raise KeyboardInterrupt
            return super().batch(recipe, step)

    with pytest.raises(KeyboardInterrupt):
        train(Killed(config, images), recipe, folder=tmp_path / "killed", compile_model=False)
    (tmp_path / "killed" / "partial").mkdir(exist_ok=True)  # as a kill in the middle of writing leaves it
    resumed = train(LabelTask(config, images), recipe, folder=tmp_path / "killed", compile_model=False)

    assert torch.equal(weights(resumed), weights(whole))
    logs = [[row["loss"] for row in read_log(tmp_path / name / "loss.csv")] for name in ("whole", "killed")]
    assert logs[0] == logs[1]
    assert len(logs[0]) == 12
    assert sorted(path.name for path in (tmp_path / "killed").glob("checkpoint-*")) == [
        "checkpoint-000008",
        "checkpoint-000012",
    ]


def test_finished_run_does_nothing_more_and_takes_no_other_recipe(tmp_path, config, images):
    recipe = replace(RECIPE, total_steps=2, sample_every=2)
    first = train(LabelTask(config, images), recipe, folder=tmp_path, compile_model=False)
    assert (tmp_path / "samples-000002.png").stat().st_size > 0
    again = train(LabelTask(config, images), recipe, folder=tmp_path, compile_model=False)
    assert torch.equal(weights(again), weights(first))
    with pytest.raises(ValueError, match="another recipe"):
        train(LabelTask(config, images), replace(recipe, batch_size=4), folder=tmp_path, compile_model=False)


def test_learns(tmp_path, config, images):
    recipe = Recipe(total_steps=150, batch_size=32, rate_warmup_steps=10, learning_rate=2e-3, checkpoint_every=150)
    train(LabelTask(config, images), recipe, folder=tmp_path, compile_model=False)
    losses = [float(row["loss"]) for row in read_log(tmp_path / "loss.csv")]
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])


def test_labels_are_dropped_once_per_image(config, images):
    recipe = Recipe(total_steps=200, batch_size=50, label_dropout=0.1)
    task = LabelTask(config, images)
    labels = torch.cat([task.batch(recipe, step).condition for step in range(200)])
    share = (labels == 10).float().mean()
    assert 0.085 < share < 0.115


def test_rate():
    recipe = Recipe(total_steps=100, learning_rate=1.0, rate_warmup_steps=10, decay_share=0.5)
    assert [recipe.rate(step) for step in (0, 9, 50, 75)] == [0.1, 1.0, 1.0, 0.5]


def test_time_budget_stops_cleanly_and_resumes(tmp_path, config, images):
    """Calls without time make one step each and leave a checkpoint; together they are one run."""
    whole = train(LabelTask(config, images), COLOUR, folder=tmp_path / "whole", compile_model=False)
    calls = []
    while not calls or not calls[-1].finished:
        assert len(calls) < 12
        calls.append(train(LabelTask(config, images), COLOUR, folder=tmp_path / "cut", compile_model=False, minutes=0))
        assert (tmp_path / "cut" / f"checkpoint-{len(calls):06d}" / "state.safetensors").is_file()
    assert [call.step for call in calls] == list(range(1, 13))
    assert whole.finished
    assert torch.equal(weights(calls[-1]), weights(whole))
    logs = [[(row["step"], row["loss"]) for row in read_log(tmp_path / name / "loss.csv")] for name in ("whole", "cut")]
    assert logs[0] == logs[1]


def test_no_step_is_begun_that_would_end_after_the_limit(tmp_path, config, images, monkeypatch):
    """Two minutes: a first step of 65 s, which compiles, then of 10 s and 30 s: one more would end at 135 s."""
    seconds = iter([65, 10, 30])
    clock = SimpleNamespace(perf_counter=lambda: clock.now, now=1000.0)

    class Slow(LabelTask):
        def batch(self, recipe, step):
            clock.now += next(seconds)
            return super().batch(recipe, step)

    monkeypatch.setattr(training, "time", clock)
    trained = train(Slow(config, images), RECIPE, folder=tmp_path, compile_model=False, minutes=2)
    assert trained.step == 3
    assert clock.now == 1000 + 105
    assert (tmp_path / "checkpoint-000003" / "state.safetensors").is_file()


def test_more_steps_may_be_asked_for_later(tmp_path, config, images):
    """The rate is constant before the decay: a run lengthened in time equals one that was long from the start."""
    long = replace(RECIPE, total_steps=16)
    train(LabelTask(config, images), RECIPE, folder=tmp_path / "a", compile_model=False, minutes=0)
    lengthened, whole = (
        train(LabelTask(config, images), long, folder=tmp_path / name, compile_model=False) for name in "ab"
    )
    assert torch.equal(weights(lengthened), weights(whole))


def test_log_in_groups_is_the_log_step_by_step(tmp_path, config, images):
    logs = []
    for every in (1, 5):
        train(
            LabelTask(config, images),
            replace(COLOUR, log_every=every),
            folder=tmp_path / str(every),
            compile_model=False,
        )
        logs.append([(row["step"], row["loss"]) for row in read_log(tmp_path / str(every) / "loss.csv")])
    assert logs[0] == logs[1]
    assert training.read_losses(tmp_path / "5") == [float(loss) for _, loss in logs[0]]


def test_throughput_leaves_out_the_first_steps():
    assert training._throughput([(20, 30.0), (40, 32.0), (60, 34.0)], replace(RECIPE, batch_size=8)) == 40 * 8 / 4
    assert training._throughput([(20, 30.0)], RECIPE) is None


def test_flips_are_fixed_by_step_and_seed(config):
    """Half of the images are mirrored, the same ones whenever a step is drawn, others with another seed."""
    ramp = torch.arange(8, dtype=torch.uint8).expand(64, 3, 8, 8).clone()
    images = LabelledImages(ramp, torch.zeros(64, dtype=torch.int64))
    recipe = Recipe(total_steps=20, batch_size=32, flip=True)

    def mirrored(recipe, first_step):
        drawn = [LabelTask(config, images).batch(recipe, step).x for step in range(first_step, recipe.total_steps)]
        return torch.stack([x[:, 0, 0, 0] > x[:, 0, 0, -1] for x in drawn])

    flips = mirrored(recipe, 0)
    assert 0.42 < flips.float().mean() < 0.58
    assert torch.equal(mirrored(recipe, 15), flips[15:])
    assert not torch.equal(mirrored(replace(recipe, seed=1), 0), flips)
    assert not mirrored(replace(recipe, flip=False), 0).any()


def test_flips_change_no_other_draw(config, images):
    recipe = Recipe(total_steps=3, batch_size=8)
    plain, flipped = (
        [LabelTask(config, images).batch(replace(recipe, flip=flip), step) for step in range(3)]
        for flip in (False, True)
    )
    for a, b in zip(plain, flipped, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))


def test_closed_gates_start_at_zero_output_and_identity_blocks(config, images):
    model = start(LabelTask(config, images), COLOUR, device="cpu").modules["transformer"]
    inside = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, given, out: inside.append(torch.equal(given[0], out)))
    image = torch.randn(2, 1, 8, 8)
    out = model(image, timestep=torch.tensor([10.0, 900.0]), class_labels=torch.tensor([1, 2])).sample
    assert not out.any()
    assert inside == [True] * len(model.transformer_blocks)


def test_broken_loss_ends_the_run_before_a_checkpoint(tmp_path, config, images):
    recipe = replace(COLOUR, learning_rate=float("inf"), log_every=2)
    with pytest.raises(ValueError, match=r"the loss of step 2 is nan: train in another folder with a lower rate"):
        train(LabelTask(config, images), recipe, folder=tmp_path, compile_model=False)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_starts_from_a_model_or_a_pipeline_in_half_precision(tmp_path, images):
    pipe = make_tiny_pipe(seed=3, dtype=torch.bfloat16)
    pipe.save_pretrained(tmp_path / "pipe")
    shutil.copytree(tmp_path / "pipe" / "transformer", tmp_path / "model")
    for folder in ("pipe", "model"):
        found = start(LabelTask({}, images), RECIPE, device="cpu", initial=tmp_path / folder).modules["transformer"]
        assert found.dtype == torch.float32
        for a, b in zip(found.parameters(), pipe.transformer.parameters(), strict=True):
            assert torch.equal(a, b.float())


def test_starts_from_some_blocks_of_a_deeper_model(tmp_path, config, images):
    pipe = make_tiny_pipe(seed=3)
    pipe.save_pretrained(tmp_path / "deep")
    task = LabelTask({**config, "num_layers": 2}, images, kept_blocks=(0, 2))
    found = start(task, RECIPE, device="cpu", initial=tmp_path / "deep").modules["transformer"]
    assert found.config.num_layers == len(found.transformer_blocks) == 2
    for mine, kept in zip(found.transformer_blocks, (0, 2), strict=True):
        for a, b in zip(mine.parameters(), pipe.transformer.transformer_blocks[kept].parameters(), strict=True):
            assert torch.equal(a, b)
    found.save_pretrained(tmp_path / "small")
    again = start(task, RECIPE, device="cpu", initial=tmp_path / "small").modules["transformer"]
    for a, b in zip(again.parameters(), found.parameters(), strict=True):
        assert torch.equal(a, b)
