"""The pages of the documentation and the code blocks in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from tapstudy.cli import app

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
}
COMMANDS = typer.main.get_command(app)
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<body>.*?)^(?P=indent)```$",
    re.M | re.S,
)


@dataclass(frozen=True)
class Block:
    """A fenced block, its place, and why it is not run, if so: the comment `<!-- not run: WHY -->` right above it."""

    page: str
    line: int
    language: str
    body: str
    why: str | None

    @property
    def place(self) -> str:
        return f"{self.page}, line {self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of every command of a bash block, comments left out and variables set to 1."""
        text = re.sub(r"\$\w+", "1", self.body.replace("\\\n", " ").replace('"$@"', ""))
        lines = [shlex.split(line, comments=True) for line in text.splitlines()]
        return [words for line in lines for words in _split(line, "&&") if words]


def blocks(*pages: str) -> Iterator[Block]:
    """Find the fenced blocks of pages."""
    for page in pages:
        for found in BLOCK.finditer(PAGES[page]):
            indent = len(found["indent"])
            body = "".join(line[indent:] if line.strip() else line for line in found["body"].splitlines(keepends=True))
            line = PAGES[page].count("\n", 0, found.start("body")) + 1
            yield Block(page, line, found["language"], body, found["why"])


def find_command(words: list[str]) -> tuple[Any, list[str]]:
    """Follow the words of a command line to the command that they name, and return what is left of them."""
    command, rest = COMMANDS, words[1:]
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no such command: {' '.join(words)}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def options(command: Any) -> set[str]:
    """Name the options of a command."""
    return {"--help", "-h"} | {name for one in command.params for name in (*one.opts, *one.secondary_opts)}


def _split(words: list[str], at: str) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for word in words:
        if word == at:
            found.append([])
        else:
            found[-1].append(word)
    return found
