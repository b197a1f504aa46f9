"""DrawBench, the prompts of the paper's images, as it is published: a table with a column of prompts."""

from __future__ import annotations

import csv
from pathlib import Path

from tapstudy.bench.conditions import Condition, read_prompts, with_negative

COUNT = 200  # prompts of DrawBench
SUFFIXES = (".csv", ".tsv", ".txt")
GET_DRAWBENCH = (
    "DrawBench is not part of this package: save its table (columns Prompts and Category, from the data of arXiv "
    "2205.11487 or a copy on the hub) as drawbench.csv and give it, or its folder, with --prompts"
)


def read_drawbench(path: str | Path) -> list[Condition]:
    """Read DrawBench's table, or any file that `read_prompts` takes.

    Args:
        path: a file, or a folder with one.

    Returns:
        The prompts without spaces around them.

    Raises:
        FileNotFoundError: no such file, or no file of prompts or several in the folder.
        ValueError: no prompts in it, the same prompt twice.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if len(files) != 1:
            raise FileNotFoundError(
                f"{path} holds {len(files)} files of prompts ({', '.join(SUFFIXES)}) and should hold one: give the file"
            )
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts at {path}. {GET_DRAWBENCH}")
    if path.suffix.lower() not in (".csv", ".tsv"):
        return read_prompts(path)
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        column = next((name for name in reader.fieldnames or () if name.strip().lower() == "prompts"), None)
        if column is None:
            return read_prompts(path)
        found: list[Condition] = [text for row in reader if (text := (row[column] or "").strip())]
    return with_negative(found, "", str(path))
