import typer

from tapstudy.cli import app as command_line
from tapstudy.commands import train
from tapstudy.models.embedded import MADE_BY
from tests.command_line import invoke
from tests.table import each_row


@each_row("words", [[], ["mnist-dit", "--steps", "3"]])
def test_without_the_package_that_trains(monkeypatch, words):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    app = typer.Typer()
    app.callback()(lambda: None)
    train.add_training(app)
    result = invoke(app, ["train", *words])
    assert result.exit_code == 2
    assert "tapstudy_training is missing" in result.output
    assert "pip install -e '.[train]'" in result.output


@each_row("name", MADE_BY)
def test_models_without_a_recipe_say_which_command_makes_them(name):
    result = invoke(command_line, ["train", name, "--steps", "3"])
    assert result.exit_code == 2
    assert f"{name} has no recipe of its own: make it with `{MADE_BY[name]}`" in result.output
    assert name not in invoke(command_line, ["train", "--help"]).output
