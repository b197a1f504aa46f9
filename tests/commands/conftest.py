"""A folder with the tiny pipeline, for commands that load a model."""

import pytest

from tests.conftest import make_tiny_pipe


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    make_tiny_pipe().save_pretrained(folder)
    return str(folder)
