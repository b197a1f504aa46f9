"""Importing the package and asking for help load only what they need, and every public name is found."""

import ast
import json
import pkgutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import tapstudy
from tests.table import each_row

HEAVY = {"dask", "matplotlib", "h5netcdf", "pandas", "scipy", "torchmetrics", "transformers", "xarray", "zarr"}
PACKAGES = ["tapstudy"]


def loaded(code):
    """The modules that are loaded once the code has run, in a process of its own."""
    told = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(json.loads(told.stdout.splitlines()[-1]))


def test_accelerating_a_pipeline_loads_nothing_heavy():
    used = "tapstudy.apply_tap, tapstudy.apply_policy, tapstudy.smooth_time, tapstudy.check, tapstudy.TAPConfig"
    ours = loaded(f"import torch, diffusers, tapstudy; {used}")
    assert "tapstudy.instrument.handle" in ours
    assert not ours & HEAVY


def test_importing_the_package_loads_no_torch():
    assert not loaded("import tapstudy") & ({"torch", "diffusers", "numpy"} | HEAVY)


def test_help_loads_no_torch():
    """All in one process: what any of them loaded would be there."""
    asked = [["--help"], ["record", "-h"], ["bench", "speed", "-h"], ["--version"]]
    code = f"""
from typer.testing import CliRunner
from tapstudy.cli import app
for asked in {asked}:
    assert CliRunner().invoke(app, asked).exit_code == 0
"""
    assert not loaded(code) & ({"torch", "diffusers", "numpy"} | HEAVY)


@each_row("package", PACKAGES)
def test_every_public_name_is_found_and_listed(package):
    module = import_module(package)
    assert module.__all__ == sorted(module._HOMES)
    for name, home in module._HOMES.items():
        assert getattr(module, name) is getattr(import_module(f"{package}.{home}"), name)
    assert set(module.__all__) <= set(dir(module))


@each_row("package", [tapstudy.policies, tapstudy.predictors])
def test_every_class_is_public(package):
    for found in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{found.name}")
        for name, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == module.__name__ and not name.startswith("_"):
                assert name in package.__all__, f"{module.__name__}.{name}"


@each_row("package", PACKAGES)
def test_type_checkers_see_the_same_names(package):
    module = import_module(package)
    for node in ast.parse(Path(module.__file__).read_text()).body:
        if isinstance(node, ast.If):
            seen = {name.asname: f"{line.module}.{name.name}" for line in node.body for name in line.names}
    assert seen == {name: f"{package}.{home}.{name}" for name, home in module._HOMES.items()}


def test_folders_are_found_and_unknown_names_are_not():
    assert "tapstudy.recording" in loaded("import tapstudy; tapstudy.recording")
    with pytest.raises(AttributeError, match="module 'tapstudy' has no attribute 'apply_tpa'"):
        tapstudy.apply_tpa()
