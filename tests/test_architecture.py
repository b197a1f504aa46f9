"""The imports of every module obey the house's arrows."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import tapstudy

ROOT = Path(tapstudy.__file__).parent
TRAINING = ROOT.parent / "tapstudy_training"


def table():
    """Package -> what it may import (None: everything), and what never, from the page of the architecture."""
    lines = (ROOT.parent / "docs" / "architecture.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")][2:]
    names = {package: [{name for name in cell.split(", ") if name} for cell in cells] for package, *cells in rows}
    return {package: (None if "everything" in may else may, never) for package, (may, never) in names.items()}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names)


def test_the_page_knows_every_package():
    assert set(table()) == {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "_"}


def test_arrows():
    """All imports that a package may not make are named at once."""
    wrong = []
    for package, (may, never) in table().items():
        for path in (ROOT / package).rglob("*.py"):
            for name in imported(path):
                parts = name.split(".")
                inside = parts[0] == "tapstudy" and len(parts) > 1 and may is not None
                if parts[0] in never or (inside and parts[1] not in {package, "extras", "lazy"} | may):
                    wrong.append(f"{path}: {name}")
    assert not wrong


def of_training(name):
    return name.split(".")[0] == TRAINING.name


def test_training_stands_beside_the_package():
    """Whoever accelerates a pipeline needs none of it, and one command alone hands over to it."""
    users = [path.relative_to(ROOT) for path in ROOT.rglob("*.py") if any(map(of_training, imported(path)))]
    assert users == [Path("commands/train.py")]
    for path in TRAINING.rglob("*.py"):
        for name in imported(path):
            if name.startswith("tapstudy.") and name != "tapstudy.commands.errors":
                assert name.split(".")[1] in {"models", "instrument", "plots"}, f"{path}: {name}"


def test_no_folder_is_flat():
    folders = {path.parent for path in (ROOT / "bench").rglob("*.py")}
    assert not [str(folder) for folder in folders if len(list(folder.glob("*.py"))) > 13], "12 files and __init__.py"


def test_no_file_grows_beyond_one_reading():
    files = [*ROOT.rglob("*.py"), *TRAINING.rglob("*.py")]
    assert not [str(path) for path in files if len(path.read_text().splitlines()) > 400]


def imported_modules(path, known):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{name.name}" for name in node.names}
            yield from (names & known) or {node.module} & known


def test_no_circle():
    """Neither when modules are loaded, nor by imports inside of functions or for annotations."""
    paths = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in ROOT.rglob("*.py")}
    TopologicalSorter({name: imported_modules(path, {*paths}) for name, path in paths.items()}).prepare()
