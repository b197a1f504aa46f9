"""The notebooks as files."""

import ast
import base64
import io
import json
import re

import pytest
from PIL import Image

from tests.notebooks.store import FOLDER, WIDTH, text
from tests.table import each_row

NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
CELLS = [json.loads((FOLDER / f"{name}.ipynb").read_text())["cells"] for name in NAMES]
every_notebook = each_row(("name", "cells"), zip(NAMES, CELLS, strict=True))


def code(cells):
    """Python of the code cells, without lines for the shell."""
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return re.sub(r"^( *)!.*$", r"\1pass", text, flags=re.MULTILINE)


@every_notebook
def test_outputs_are_stored(name, cells):
    """In the order of the cells, without errors, and with nothing of the machine that made them."""
    found = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in found] == list(range(1, len(found) + 1))
    outputs = [output for cell in found for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] in ("stream", "execute_result", "display_data")
        assert output.get("name", "stdout") == "stdout"
        assert set(output.get("data", {})) <= {"text/plain", "text/html", "image/png"}
    said = "".join(text(cell) for cell in found)
    assert not re.search(r"/(work|home|root|tmp|usr)/| at 0x| ms\b|seconds? a step", said)
    for output in outputs:
        if (encoded := output.get("data", {}).get("image/png")) is not None:
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
                assert image.width <= WIDTH


def test_all_outputs_are_small():
    assert sum(path.stat().st_size for path in FOLDER.glob("*.ipynb")) <= 4e6


@every_notebook
def test_cells_are_short_and_their_ids_stable(name, cells):
    assert [cell["id"] for cell in cells] == [f"cell-{i:02d}" for i in range(len(cells))]
    assert max(len(cell["source"]) for cell in cells if cell["cell_type"] == "code") <= 30


@every_notebook
def test_story_opens_with_a_question_and_ends_with_the_answer(name, cells):
    title = cells[0]["source"][0]
    assert cells[0]["cell_type"] == "markdown"
    assert title.startswith("# ")
    assert title.endswith("?\n")
    words = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    assert "## The answer" in words[-1]  # a cell that reads it from the tables may follow


@every_notebook
def test_one_switch_which_is_off(name, cells):
    tree = ast.parse(code(cells))
    switches = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "RECOMPUTE"
    ]
    assert switches == [False]
    assert any(isinstance(node, ast.Name) and node.id == "RECOMPUTE" and isinstance(node.ctx, ast.Load)
               for node in ast.walk(tree))  # fmt: skip


@every_notebook
def test_only_public_modules_and_names_are_imported(name, cells):
    for node in ast.walk(ast.parse(code(cells))):
        if isinstance(node, ast.ImportFrom):
            names = [*node.module.split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        else:
            continue
        assert not [name for name in names if name.startswith("_")]
        assert names[0] != "tests"


@every_notebook
def test_commands_of_the_shell_exist(name, cells):
    """Every command behind RECOMPUTE is one of the command line's, with options that it knows."""
    from typer.main import get_command

    from tapstudy.cli import app

    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    for line in re.findall(r"-m tapstudy\.cli (.+)", text):
        command, words = get_command(app), line.split()
        while hasattr(command, "commands") and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands"):  # the group lacks it
            if words[0] not in ("claims", "ablate"):
                pytest.fail(f"no command in {line!r}")
            continue
        known = {option for parameter in command.params for option in parameter.opts}
        asked = {word for word in words if word.startswith("--")}
        assert asked <= known, line
