"""The files about the project can be read, and agree with each other and with the package."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

import tapstudy

ROOT = Path(tapstudy.__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ISSUES = ROOT / ".github" / "ISSUE_TEMPLATE"


def read(*parts):
    return yaml.safe_load(ROOT.joinpath(*parts).read_text())


@pytest.fixture(scope="module")
def jobs():
    return read(".github", "workflows", "ci.yml")["jobs"]


def test_the_workflow_tries_every_python_and_the_ends_of_diffusers(jobs):
    promised = {found[1] for line in PROJECT["classifiers"] if (found := re.search(r"Python :: (3\.\d+)$", line))}
    assert set(jobs["tests"]["strategy"]["matrix"]["python"]) == promised
    oldest = min(promised, key=lambda text: int(text.split(".")[1]))
    assert PROJECT["requires-python"] == f">={oldest}"
    assert set(jobs["wheel"]["strategy"]["matrix"]["python"]) <= promised
    matrix = jobs["tests"]["strategy"]["matrix"]
    told = [*matrix["diffusers"], *(one["diffusers"] for one in matrix["include"])]
    tried = {text.removesuffix(".*") for text in told}
    (limits,) = (line.removeprefix("diffusers") for line in PROJECT["dependencies"] if line.startswith("diffusers"))
    minors = [f"0.{minor}" for minor in range(200) if SpecifierSet(limits).contains(f"0.{minor}.0")]
    assert tried == {minors[0], minors[-1]}


def test_the_workflow_runs_what_there_is(jobs):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for job in jobs.values():
        for step in job["steps"]:
            assert ("uses" in step) != ("run" in step)
            assert re.fullmatch(r"actions/(checkout|setup-python)@v\d+", step.get("uses", "actions/checkout@v4"))
            command = step.get("run", "").split()
            if command[:1] == ["make"]:
                assert command[1] in targets
            assert all((ROOT / word).exists() for word in command if "/" in word and word[0] not in "'-")


def test_hooks_run_what_the_test_command_runs():
    hooks = [hook for repository in read(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    assert all({"id", "name", "entry", "language"} <= hook.keys() for hook in hooks)
    assert {"ruff", "mypy"} == {hook["entry"].split()[0] for hook in hooks}


def test_issue_forms_ask_what_can_be_answered():
    forms = {path.stem: read(path) for path in ISSUES.glob("*.yml")}
    assert forms.pop("config") == {"blank_issues_enabled": True}
    for form in forms.values():
        assert {"name", "description", "body"} <= form.keys()
        ids = [entry["id"] for entry in form["body"]]
        assert len(ids) == len(set(ids))
        assert all(entry["type"] in ("input", "textarea") and entry["attributes"]["label"] for entry in form["body"])
    assert len(forms) == 3


def test_the_citation_agrees_with_the_project():
    found = read("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= found.keys()
    assert found["license"] == PROJECT["license"]
    assert [one["name"] for one in found["authors"]] == [one["name"] for one in PROJECT["authors"]]
    (paper,) = found["references"]
    assert paper["url"] == PROJECT["urls"]["Paper"]
    assert len(paper["authors"]) == 10


def test_the_quick_start_names_every_extra():
    rows = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "quick_start.md").read_text(), re.MULTILINE)
    assert rows == list(PROJECT["optional-dependencies"])


def test_one_source_of_the_version():
    assert "version" not in PROJECT
    assert "version" in PROJECT["dynamic"]
    told = subprocess.run([sys.executable, "-m", "tapstudy", "--version"], capture_output=True, text=True, check=True)
    assert told.stdout == f"tapstudy {tapstudy.__version__}\n"
