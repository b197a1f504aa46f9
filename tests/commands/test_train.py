import pytest
import typer
from typer.testing import CliRunner

from tapstudy.commands import train


@pytest.mark.parametrize("words", [[], ["mnist-dit", "--steps", "3"]])
def test_without_the_package_that_trains(monkeypatch, words):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    app = typer.Typer()
    app.callback()(lambda: None)
    train.add_training(app)
    result = CliRunner().invoke(app, ["train", *words])
    assert result.exit_code == 2
    assert "tapstudy_training is missing" in result.output
    assert "pip install -e '.[train]'" in result.output
