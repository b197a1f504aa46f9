"""Code blocks of the README and the documentation run.

The blocks of a page run in order, in one folder and one namespace, which has a small FLUX pipeline `pipe`, prompts, and
the folder `FOLDER` that it is saved to. Weights of the hub are replaced by such a pipeline of the same class, CUDA by
the CPU, and runs have few steps. A block below `<!-- not run: WHY -->` is checked as far as that goes without running
it: the syntax and names of Python, commands, options and their values in bash.
"""

from __future__ import annotations

import ast
import importlib
import logging
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import tapstudy
from tapstudy.cli import app
from tests.command_line import invoke
from tests.commands.test_any_pipeline import saved
from tests.docs.pages import COMMANDS, PAGES, ROOT, Block, blocks, find_command, options
from tests.pipelines import tiny
from tests.table import each_row

STEPS = 9  # of every run
TINY = {"FluxPipeline": "flux", "DiTPipeline": "dit", "QwenImagePipeline": "qwen_image", "WanPipeline": "wan"}
SHELL = ("export", "mkdir", "train", "pack", "cp", "tar", "mv", "}", "nice", "python", ".", "jupyter", "npm", "hf",
         "curl", "WEIGHTS/")  # fmt: skip
TEXT = ("text", "csv")
STORIES = [  # pages that go on with each other's files
    ("docs/how_to/record.md", "docs/how_to/analyse.md", "docs/how_to/explore.md")
]
STORIES += [(page,) for page in PAGES if page not in STORIES[0]]
LONG = ["docs/how_to/record.md", "docs/how_to/ablate.md", "docs/how_to/compare.md", "docs/how_to/fit_schedule.md",
        "docs/your_pipeline.md", "docs/clock.md"]  # fmt: skip
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small FLUX pipeline and a CSV with two prompts."""
    folder = tmp_path_factory.mktemp("flux")
    saved("flux", folder)
    return folder


@pytest.fixture(autouse=True)
def log() -> Iterator[None]:
    """Leave logging as it was: blocks may set it up."""
    loggers = [logging.getLogger(), logging.getLogger("tapstudy")]
    before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def desk(flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The folder and namespace of a page."""
    load, move = diffusers.DiffusionPipeline.from_pretrained.__func__, diffusers.DiffusionPipeline.to  # type: ignore[attr-defined]

    def from_pretrained(cls: Any, source: Any, **settings: Any) -> Any:
        if not Path(source).exists():
            getattr(tiny, TINY[cls.__name__])()[0].save_pretrained(folder := tmp_path / "hub" / cls.__name__)
            source = folder
        pipe = load(cls, source, **settings)
        if isinstance(pipe, diffusers.FluxPipeline):
            pipe.default_sample_size = 8
        return pipe

    def to(pipe: Any, *places: Any, **settings: Any) -> Any:
        there = torch.cuda.is_available()
        return move(pipe, *(place if there or place != "cuda" else "cpu" for place in places), **settings)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", classmethod(from_pretrained))
    monkeypatch.setattr(diffusers.DiffusionPipeline, "to", to)
    shutil.copy(flux / "flux.csv", tmp_path / "mine.csv")
    prompts = ["a fox in the snow", "two small boats at dawn"]
    (tmp_path / "fit.txt").write_text("\n".join(prompts))
    (tmp_path / "FOLDER").symlink_to(flux / "flux")
    (tmp_path / "data").symlink_to(ROOT / "data")
    monkeypatch.chdir(tmp_path)
    pipe = diffusers.FluxPipeline.from_pretrained("FOLDER")
    pipe.set_progress_bar_config(disable=True)
    return {"tapstudy": tapstudy, "pipe": pipe, "prompts": prompts, "others": prompts}


@pytest.mark.filterwarnings("ignore:`torch_dtype` is deprecated:FutureWarning")  # the name that all versions know
@pytest.mark.parametrize(
    "story",
    [
        pytest.param(story, id=" ".join(story), marks=[pytest.mark.slow] if story[0] in LONG else [])
        for story in STORIES
        if any(block.language not in TEXT for block in blocks(*story))
    ],
)
def test_the_blocks_of_a_page_run(story: tuple[str, ...], desk: dict[str, Any]) -> None:
    for block in blocks(*story):
        if block.language == "python":
            (check_python if block.why else run_python)(block, desk)
        elif block.language == "bash":
            (check_bash if block.why else run_bash)(block)
        else:
            assert block.language in TEXT, f"{block.place}: write python, bash or one of {TEXT} behind the fence"


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    body = re.sub(r'\b((?:num_inference_)?steps"?(?:=|: ))\d+', rf"\g<1>{STEPS}", block.body)
    exec(compile("\n" * block.line + body, str(ROOT / block.page), "exec"), namespace)


def check_python(block: Block, namespace: dict[str, Any]) -> None:
    """Parse it, import what it imports of tapstudy, and look up what it names of it."""
    del namespace
    for node in ast.walk(ast.parse(block.body)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tapstudy"):
            module = importlib.import_module(node.module or "")
            for name in node.names:
                assert hasattr(module, name.name) or importlib.import_module(f"{node.module}.{name.name}"), block.place
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "tapstudy":
            assert hasattr(tapstudy, node.attr), f"{block.place}: tapstudy has no {node.attr}"


def run_bash(block: Block) -> None:
    for words in block.commands:
        assert words[0] == "tapstudy", f"{block.place}: run {words[0]} by hand: <!-- not run: WHY --> above the block"
        command, rest = find_command(words)
        if "--steps" in options(command):
            at = rest.index("--steps") if "--steps" in rest else len(rest)
            if "--resume" not in rest:
                rest[at : at + 2] = ["--steps", str(STEPS)]
        done = invoke(app, [*words[1 : len(words) - len(find_command(words)[1])], *rest])
        assert done.exit_code == 0, f"{block.place}: {' '.join(words)}\n{done.output}"


def check_bash(block: Block) -> None:
    """Let the command line read every command of ours, and look up targets of make and extras of pip."""
    for words in block.commands:
        if words[0] == "nice":
            words = words[3:]
        where = f"{block.place}: {' '.join(words)}"
        if words[0] == "tapstudy":
            command, rest = find_command(words)
            command.make_context(
                command.name, rest, parent=COMMANDS.make_context("tapstudy", [], resilient_parsing=True)
            )
        elif words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), where
        elif words[0] == "pip":
            for extra in re.findall(r"\[(.+?)\]", " ".join(words)):
                assert set(extra.split(",")) <= EXTRAS.keys(), where
            assert "constraints.txt" not in words or (ROOT / "constraints.txt").is_file(), where
        else:
            assert words[0].startswith(SHELL), where


@each_row("page", PAGES)
def test_commands_in_the_text_exist(page: str) -> None:
    """Commands in the running text: their names and options; capitals stand for what the reader puts there."""
    for text in re.findall(r"`(tapstudy [^`]+)`", re.sub(r"^ *```.*?^ *```$", "", PAGES[page], flags=re.M | re.S)):
        words = text.split()
        if words[1].isupper() or (words[1] in ("train", "bench") and words[2:] and words[2].isupper()):
            continue
        command, rest = find_command(words)
        unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - options(command)
        assert not unknown, f"{page}: `{text}` has no option {', '.join(unknown)}"
