"""What the package logs is shown by commands, and the package prints nothing itself."""

import ast
import logging
from pathlib import Path

import pytest

import tapstudy
from tapstudy.commands.log import Terminal, show_log

PACKAGE = Path(tapstudy.__file__).parent


@pytest.fixture
def logger():
    """The package's, as it is before any command."""
    found = logging.getLogger("tapstudy")
    handlers, level = found.handlers, found.level
    found.handlers = []
    found.setLevel(logging.NOTSET)
    yield found
    found.handlers = handlers
    found.setLevel(level)


def test_commands_show_what_is_logged(logger, capsys):
    one = logging.getLogger("tapstudy.bench.results")
    one.info("before")
    for _ in range(2):  # a second command in the process shows nothing twice
        show_log()
    one.info("stage %d of %d", 1, 6)
    one.warning("a.nc is damaged")
    one.debug("detail")
    assert capsys.readouterr() == ("", "stage 1 of 6\na.nc is damaged\n")
    assert [type(handler) for handler in logger.handlers] == [Terminal]


def test_only_commands_print():
    for path in {*PACKAGE.rglob("*.py")} - {*(PACKAGE / "commands").iterdir()}:
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printed = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "print"]
        written = [
            node for node in calls if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) == "tqdm.write"
        ]
        assert not printed + written or path.name in ("__main__.py", "vbench_process.py"), path
