"""Build what the site has beside the pages in docs/: home, changes, examples, gallery, commands, and the figures."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import typer.main
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from tapstudy.cli import app
from tapstudy.figures import FIGURES

ROOT = Path(__file__).resolve().parents[1]
COPIED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINKS = {"docs/": "", "examples/README.md": "examples.md", **{source: page for page, source in COPIED.items()}}
LATER = ("gpu.md",)  # pages that the navigation names and that may not be there yet
# figures that `tapstudy figures` does not draw -> what makes them
OTHERS = {
    **dict.fromkeys(
        ("demo_choice_maps", "demo_images", "demo_prompts", "demo_proxy_vs_truth"), "tapstudy demo --out figures"
    ),
    "clock": "tapstudy roughness mnist-dit-rough --labels 0,1,2 --figure clock.png",
    "explorer_page": "a screenshot of the page that `tapstudy explore` writes",
}
HIDDEN = "---\nhide: [navigation]\n---\n"  # of the home page: its navigation has one entry
log = logging.getLogger("mkdocs.hooks.site")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Take pages out of the navigation that are not there yet."""
    absent = {page for page in LATER if not (ROOT / "docs" / page).is_file()}
    for section in config.nav or []:
        for title, entries in section.items():
            if isinstance(entries, list):
                section[title] = [entry for entry in entries if not absent & set(entry.values())]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the figures and the pages that are made here."""
    pictures = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "figures").rglob("*.png"))}
    pictures |= {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "data/models").glob("*/*.png"))}
    for place, path in pictures.items():
        files.append(File.generated(config, place, abs_src_path=str(path)))
    for page, source in COPIED.items():
        text = (ROOT / source).read_text()
        for place, there in LINKS.items():
            text = text.replace(f"]({place}", f"]({there}")
        files.append(File.generated(config, page, content=HIDDEN * (page == "index.md") + text))
    files.append(File.generated(config, "examples.md", content="\n".join(_examples())))
    files.append(File.generated(config, "gallery.md", content="\n".join(_gallery(list(pictures)))))
    files.append(File.generated(config, "reference/commands.md", content="\n".join(_commands())))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point at the figures where the site has them, one folder up, and ask for the reference of whole packages."""
    markdown = re.sub(r"<!-- every public name of (\S+) -->", _names, markdown)
    return re.sub(r"\.\./((?:\.\./)*(?:figures|data/models)/)", r"\1", markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Let a click on a figure open it in full."""
    return re.sub(r'(<img [^>]*src="([^"]+)"[^>]*>)', r'<a href="\2">\1</a>', html)


def _names(package: re.Match[str]) -> str:
    front = (ROOT / "docs/reference/accelerate.md").read_text().split()
    names = [name for name in import_module(package[1]).__all__ if f"tapstudy.{name}" not in front]
    return "\n".join(f"::: {package[1]}.{name}" for name in names)


def _examples() -> Iterator[str]:
    folder = ROOT / "examples"
    scripts = sorted(folder.glob("*.py"))
    text = (folder / "README.md").read_text()
    for script in scripts:
        text = text.replace(f"]({script.name})", f"](#{script.name.replace('.', '')})")
    yield text
    for script in scripts:
        yield f"## {script.name}\n\n```python\n{script.read_text().rstrip()}\n```\n"


def _gallery(pictures: list[str]) -> Iterator[str]:
    yield "# Gallery\n"
    yield (
        "Every figure of the repository, the command that draws it, and the function that command calls. Figures of "
        "models other than `mnist-dit` take `--model NAME`. The same data gives the same bytes.\n"
    )
    figures = [Path(place) for place in pictures if place.startswith("figures/")]
    for name in sorted({path.stem for path in figures} - {*FIGURES, *OTHERS}):
        log.warning("no command is known for the figure %r: add it to FIGURES or to OTHERS of docs/site_hooks.py", name)
    for name, make in FIGURES.items():
        yield from _entry(name, [path for path in figures if path.stem == name], make)
    yield "## Figures of the demo, the explorer and notebooks\n"
    for name, maker in OTHERS.items():
        for path in (path for path in figures if path.stem == name):
            command = f"`{maker}`" if " " in maker and "`" not in maker else maker
            yield f"### {_title(name)}\n\n![{_title(name)}]({path.as_posix()}){{loading=lazy}}\n\nMade by {command}.\n"


def _entry(name: str, paths: list[Path], make: Callable[..., Any]) -> Iterator[str]:
    if not paths:
        return
    yield f"## {_title(name)}\n\n{(inspect.getdoc(make) or '').splitlines()[0]}\n"
    for path in paths:
        model = path.parent.name if path.parent.name != "figures" else "mnist-dit"
        option = "" if model == "mnist-dit" else f" --model {model}"
        yield f"![{_title(name)}, {model}]({path.as_posix()}){{loading=lazy}}\n"
        yield f"`tapstudy figures {name}{option}`\n"
    source = "\n".join(f"    {line}".rstrip() for line in inspect.getsource(make).splitlines())
    yield f'??? example "tapstudy/figures.py"\n\n    ```python\n{source}\n    ```\n'


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _commands() -> Iterator[str]:
    yield "# Commands\n\n`tapstudy COMMAND --help` says the same in the terminal.\n"
    yield from _command(typer.main.get_command(app), "tapstudy")


def _command(command: Any, path: str) -> Iterator[str]:
    for name, below in getattr(command, "commands", {}).items():
        yield from _command(below, f"{path} {name}")
    if hasattr(command, "commands"):
        return
    yield f"## {path}\n\n{inspect.cleandoc(command.help or '')}\n"
    shown = [one for one in command.params if one.name not in ("help",) and not getattr(one, "hidden", False)]
    if shown:
        yield "| option | meaning | default |\n|---|---|---|"
    for one in shown:
        names = (
            ", ".join(f"`{name}`" for name in (one.opts + one.secondary_opts))
            if one.param_type_name == "option"
            else f"`{one.name.upper()}`"
        )
        default = "" if one.default in (None, "", False) or callable(one.default) else f"`{one.default}`"
        text = re.sub(r"\s+", " ", getattr(one, "help", None) or "").replace("|", "\\|").replace("<", "&lt;")
        yield f"| {names} | {text} | {default} |"
    yield ""
