"""The whole way of `emoji-flux`, from images with names to a loaded model with a card, on a tiny recipe."""

import re
from dataclasses import replace

import pytest
import torch
from typer.testing import CliRunner

import tapstudy
from tapstudy.models.classifier import Classifier
from tapstudy_training import command as commands
from tapstudy_training.captioned import BACKGROUNDS, emoji_classes, renderings
from tapstudy_training.checkpoint import start
from tapstudy_training.emoji_card import measure_emoji_model
from tapstudy_training.emoji_quality import (
    Wanted,
    backgrounds_of,
    judge_pictures,
    nearest_distances,
    real_pictures,
    wanted_pictures,
)
from tapstudy_training.make import make_classifier
from tapstudy_training.recipes import CLASSIFIERS
from tapstudy_training.training import Trained, train
from tests.table import each_row
from tests.training.emoji import TINY, shapes, tiny_pipe, tiny_task, write_archive


def weights(trained):
    return torch.cat([p.detach().flatten() for p in trained.modules.parameters()])


def test_cut_and_resumed_run_is_the_whole_one(tmp_path):
    """Through both sizes and with both optimizers, bit by bit; and the time features are stock again at the end."""
    whole = train(tiny_task(), TINY.recipe, folder=tmp_path / "whole", compile_model=False)
    calls = []
    while not calls or not calls[-1].finished:
        assert len(calls) < 6
        calls.append(train(tiny_task(), TINY.recipe, folder=tmp_path / "cut", compile_model=False, minutes=0))
    assert torch.equal(weights(calls[-1]), weights(whole))
    assert type(whole.modules["transformer"].time_text_embed.time_proj).__name__ == "Timesteps"


def test_batches_change_size_and_drop_captions():
    task, recipe = tiny_task(), replace(TINY.recipe, batch_size=64)
    assert task.batch(recipe, 2).x.shape == (64, 3, 16, 16)
    batch = task.batch(recipe, 3)
    assert batch.x.shape == (64, 3, 32, 32)
    dropped = (batch.condition[:, 0] == task.tokenizer.eos_token_id).float().mean()
    assert 0.02 < dropped < 0.25
    assert torch.equal(task.batch(recipe, 3).x, batch.x)
    assert batch.t.sort().values.diff().min() > 0  # one time in each part of (0, 1)
    names = " ".join(task.tokenizer.batch_decode(batch.condition))
    assert "cook dark" not in names
    assert "cook light" in names


def test_muon_learns_the_matrices_and_adamw_the_rest():
    task = tiny_task()
    state = start(task, TINY.recipe, device="cpu")
    adamw, muon = state.optimizers
    mine = {id(p) for group in muon.param_groups for p in group["params"]}
    names = {name for name, p in state.modules.named_parameters() if id(p) in mine}
    assert "transformer.transformer_blocks.0.attn.to_q.weight" in names
    assert "transformer.single_transformer_blocks.0.proj_mlp.weight" in names
    assert not any("norm" in name or "text_encoder" in name or "embed" in name for name in names)
    assert sum(len(group["params"]) for o in (adamw, muon) for group in o.param_groups) == len(
        list(state.modules.parameters())
    )
    state.step = 0
    state.rates(TINY.recipe)
    assert [o.param_groups[0]["lr"] for o in (adamw, muon)] == pytest.approx([0.5e-3, 1e-3])


def test_starts_at_zero_output():
    task = tiny_task()
    modules = start(task, TINY.recipe, device="cpu").modules
    batch = task.batch(TINY.recipe, 5)
    assert not task.velocity(modules, batch.x, batch.t, batch.condition).any()


def test_goes_on_from_an_exported_model(tmp_path):
    tiny_pipe(seed=3).save_pretrained(tmp_path)
    state = start(tiny_task(), TINY.recipe, device="cpu", initial=tmp_path)
    encoder = tiny_pipe(seed=3).text_encoder
    for a, b in zip(state.modules["text_encoder"].parameters(), encoder.parameters(), strict=True):
        assert torch.equal(a, b)
    other = replace(shapes(32), emoji=tuple(replace(one, name=f"{one.name} x") for one in shapes(32).emoji))
    with pytest.raises(ValueError, match="knows other words"):
        start(tiny_task(other), TINY.recipe, device="cpu", initial=tmp_path)


class Knowing(Classifier):
    """A judge that knows the shapes by their colour, as an oracle would."""

    def __init__(self, images):
        super().__init__(bands=3, classes=len(emoji_classes(images.emoji)), width=4)
        self.known = renderings(images, each=1, seed=0)

    def forward(self, pictures):
        middle = pictures[..., pictures.shape[-2] // 2, pictures.shape[-1] // 2]
        half = self.known.images.shape[-1] // 2
        real = self.known.images[..., half, half].float() / 127.5 - 1
        classes = self.known.labels == torch.arange(self.head.out_features)[:, None]  # (classes, known)
        distance = torch.cdist(middle, real)[:, None].where(classes, torch.inf)
        return -distance.amin(dim=-1)  # (n, classes)


def test_quality_of_real_and_of_wrong_pictures():
    images = shapes()
    wanted = wanted_pictures(images, 11, held_out=False)
    real = real_pictures(images, wanted)
    found = judge_pictures(real, images, wanted, Knowing(images))
    assert (found.count, found.first, found.among_20, found.background) == (11, 1, 1, 1)
    assert found.nearest < 1e-6
    shifted = judge_pictures(real.roll(1, dims=0), images, wanted, Knowing(images))
    assert shifted.first < 0.3
    assert shifted.background < 0.1
    held_out = wanted_pictures(images, 1, held_out=True)
    assert nearest_distances(real_pictures(images, held_out), images, held_out)[0] > 0.05


def test_tone_and_name_are_judged_apart():
    images = shapes()
    index = {(one.name, one.tone, one.style): i for i, one in enumerate(images.emoji)}
    light, dark = index["nurse", "light", "noto"], index["nurse", "dark", "noto"]
    pictures = real_pictures(images, [Wanted(dark, "teal")])
    found = judge_pictures(pictures, images, [Wanted(light, "teal")], Knowing(images))
    assert (found.first, found.name, found.tone) == (0, 1, 0)


@each_row("name", BACKGROUNDS)
def test_backgrounds_are_named_under_noise(name):
    images = shapes()
    picture = images.pictures([2], [name])
    assert backgrounds_of(picture + 0.05 * torch.randn(picture.shape)) == [name]


def test_command_trains_goes_on_measures_and_writes_a_card(tmp_path):
    size = TINY.size
    write_archive(tmp_path, shapes(size))
    judge = tmp_path / "judge"
    some = renderings(shapes(size), each=8, seed=0)
    make_classifier(
        "emoji",
        replace(CLASSIFIERS["emoji"], epochs=1, width=4, batch_size=16),
        train_images=some,
        test=some,
        out=judge,
    )
    app = commands.typer.Typer()
    app.command("tiny")(commands.text_model_command(replace(TINY, compile=False)))
    out = tmp_path / "out"
    common = ["--data", str(tmp_path), "--work", str(tmp_path / "work"), "--out", str(out), "--classifier", str(judge)]
    first = CliRunner().invoke(app, [*common, "--minutes", "0", "--count", "2", "--measure"])
    assert first.exit_code == 0, first.output
    assert "Unfinished, 1 steps so far" in (out / "README.md").read_text()
    again = CliRunner().invoke(app, [*common, "--count", "2"])
    assert again.exit_code == 0, again.output
    card = (out / "README.md").read_text()
    for part in (
        "This run: 24 images",
        "11 emoji of two styles",
        "sigma = 30",
        "| this model, held-out",
        "Twemoji graphics",
    ):
        assert part in card, part
    pipe = tapstudy.load(out)
    assert pipe.text_encoder.dtype == torch.float32
    for name in ("samples.png", "loss.png", "loss.csv"):
        assert (out / name).stat().st_size > 0
    refused = CliRunner().invoke(app, common[2:])
    assert refused.exit_code != 0
    assert "--data is missing" in refused.output
    judged = CliRunner().invoke(
        commands.app,
        ["emoji-quality", "--data", str(tmp_path), "--model", str(out), "--classifier", str(judge), "--count", "5",
         "--work", str(tmp_path / "judged")],
    )  # fmt: skip
    assert judged.exit_code == 0, judged.output
    table = re.compile(r"^\| (this model|real emoji), .*\n", re.MULTILINE)
    new = (out / "README.md").read_text()
    assert table.sub("", new) == table.sub("", card)
    assert "| this model, training captions | 5 |" in new
    assert "| this model, training captions | 2 |" in card


@each_row(("card", "told"), [(None, "no card"), ("# a model\n", "0 tables"), ("## Quality\n| a |\n" * 2, "2 tables")])
def test_quality_of_a_folder_without_one_table_to_replace_is_refused_before_sampling(tmp_path, card, told):
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    refused = CliRunner().invoke(commands.app, ["emoji-quality", "--model", str(tmp_path)])
    assert refused.exit_code != 0
    assert told in refused.output


@each_row(("seconds", "rate"), [("0.0", ""), ("36.0", ", 0.1 images a second")])
def test_card_of_a_run_too_quick_to_time(tmp_path, seconds, rate):
    """The log rounds to tenths of a second, and a short run may have taken none. (Samples are kept between rows.)"""
    images = shapes(TINY.size)
    (tmp_path / "loss.csv").write_text(f"step,loss,seconds\n1,1.0,{seconds}\n")
    task = tiny_task()
    trained = Trained(task.build().eval(), 1, False, None)
    judge = Classifier(bands=3, classes=len(emoji_classes(images.emoji)), width=4).eval()
    spec = replace(TINY, count=1)
    measure_emoji_model(spec, trained, images=images, judge=judge, compute="two cores", out=tmp_path, work=tmp_path)
    assert f"hours on two cores{rate}. Mean loss" in (tmp_path / "README.md").read_text()
