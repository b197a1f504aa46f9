"""The core's dependencies alone accelerate pipelines; the rest says which extra brings what it lacks."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import tapstudy
from tapstudy.extras import EXTRAS, need

PACKAGE = Path(tapstudy.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["project"]
SCRIPT = Path(__file__).with_name("use_the_core.py")
OF_THE_CORE = {"core", "extras", "instrument", "lazy", "models", "netcdf", "policies", "predictors", "tables"}


def core_distributions():
    """What `pip install tapstudy` brings: the dependencies, and theirs."""
    found, waiting = {}, [Requirement(line) for line in PROJECT["dependencies"]]
    while waiting:
        one = waiting.pop()
        if (one.marker is None or one.marker.evaluate({"extra": ""})) and one.name not in found:
            found[one.name] = distribution(one.name)
            waiting += map(Requirement, found[one.name].requires or ())
    return found


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """What the script tells in a process that sees the core's distributions alone."""
    site = tmp_path_factory.mktemp("site")
    for one in core_distributions().values():
        for name in {file.parts[0] for file in one.files} - {"..", "__pycache__"}:
            if not (site / name).exists():
                (site / name).symlink_to(one.locate_file(name))
    (site / "tapstudy").symlink_to(PACKAGE)
    modules = sorted(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))
    told = subprocess.run(
        [sys.executable, "-S", str(SCRIPT), *(name.removesuffix(".__init__") for name in modules)],
        env={**os.environ, "PYTHONPATH": str(site), "TAPSTUDY_DATA": str(PACKAGE.parent / "data")},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    return json.loads(told.stdout.splitlines()[-1])


def test_a_pipeline_is_accelerated(core):
    assert core["mask"] == "FFF..F..F"
    assert "5 full and 4 skipped of 9 steps" in core["summary"]
    assert core["digit"] == [28, 28]


def test_what_needs_more_says_which_extra_brings_it(core):
    hint = re.compile(r"ModuleNotFoundError: .+ needs .+: pip install 'tapstudy\[study\]'$")
    for name, outcome in core["modules"].items():
        if name == "tapstudy.core.kernels":  # loaded on devices whose torch brings Triton
            assert outcome in ("ok", "ModuleNotFoundError: No module named 'triton'")
        elif name in ("tapstudy", "tapstudy.__main__") or name.split(".")[1] in OF_THE_CORE:
            assert outcome == "ok", name
        elif name != "tapstudy.cli":  # whoever starts the command line is told
            assert hint.match(outcome), (name, outcome)
    lacking = {name for name, outcome in core["names"].items() if outcome != "ok"}
    assert lacking == {
        "RecordingError", "SigmaChoice", "choose_sigma", "compare", "fit_schedule", "open_recording", "record",
        "time_roughness",
    }  # fmt: skip
    assert all(hint.match(core["names"][name]) for name in lacking)
    assert core["text"] == "ModuleNotFoundError: a TextPipeline needs transformers: pip install 'tapstudy[study]'"
    assert core["command"] == "Error: the command line needs typer, rich: pip install 'tapstudy[study]'\n"


def test_need(monkeypatch):
    need("anything", "json", "numpy")
    monkeypatch.setattr("tapstudy.extras.find_spec", lambda name: None if name in ("xarray", "triton") else name)
    with pytest.raises(ModuleNotFoundError, match=r"^it needs xarray, triton: pip install 'tapstudy\[study,fast\]'$"):
        need("it", "scipy", "xarray", "triton")


def test_the_table_agrees_with_the_project():
    def normal(name):
        return name.lower().replace("_", "-")

    brought = PROJECT["optional-dependencies"]
    for extra, packages in EXTRAS.items():
        told = {normal(Requirement(line).name) for line in brought[extra]} - {"tapstudy"}
        assert {normal(name) for name in packages} == told, extra


def test_every_package_that_is_imported_belongs_to_the_core_or_an_extra():
    core = {file.parts[0] for one in core_distributions().values() for file in one.files}
    known = {*sys.stdlib_module_names, "tapstudy", "tapstudy_training", *core, *(p for e in EXTRAS.values() for p in e)}
    known |= {"pandas", "IPython"}  # xarray and ipywidgets bring them
    elsewhere = PACKAGE / "bench" / "paper" / "vbench_process.py"  # runs in an environment of its own
    for path in {*PACKAGE.rglob("*.py")} - {elsewhere}:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            assert {name.split(".")[0] for name in names} <= known, path


def test_a_rival_that_is_not_installed_is_told_of(monkeypatch, capsys):
    from tapstudy.commands.compare import _peers

    monkeypatch.setattr("tapstudy.extras.find_spec", lambda name: None if name == "cache_dit" else name)
    assert list(_peers(None, 6)) == ["diffusers FirstBlockCache", "diffusers TaylorSeer"]
    assert capsys.readouterr().err == "left out: cache-dit DBCache needs cache_dit: pip install 'tapstudy[bench]'\n"
