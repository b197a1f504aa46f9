"""`tapstudy info`: what is known about a model, a transformer class or a recording."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tapstudy.commands.checks import read_json
from tapstudy.commands.errors import user_errors

if TYPE_CHECKING:
    from tapstudy.instrument.adapters import Adapter


def info(
    model: Annotated[
        str,
        typer.Argument(help="embedded model, saved pipeline or transformer, transformer class, or recording"),
    ],
    verify: Annotated[bool, typer.Option("--verify", help="of a recording: check every chunk")] = False,
) -> None:
    """Tell what a model's adapter says and whether TAP works on it; a class's costs; what a recording holds."""
    with user_errors():
        from tapstudy.commands.info_run import describe_run
        from tapstudy.instrument.adapters import ADAPTERS

        if (Path(model) / "zarr.json").is_file():
            typer.echo(describe_run(model, verify=verify))
            return
        if model in ADAPTERS:
            _about_class(model)
            return
        reports = [_about_model(folder, name) for folder, name in _transformers(_folder(model)).items()]
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def _about_class(name: str) -> None:
    import diffusers

    from tapstudy.bench.speed.real_sizes import real_size_costs
    from tapstudy.instrument.adapters import ADAPTERS

    typer.echo(f"{name}\n{_row(ADAPTERS[name], getattr(diffusers, name, object))}")
    typer.echo(f"At real size (computed without weights):\n{real_size_costs(name)}")


def _about_model(folder: Path, name: str) -> Any:
    import torch

    from tapstudy import check
    from tapstudy.bench.speed.example_inputs import example_inputs
    from tapstudy.instrument.handle import find_transformers

    model = _load(folder, name)
    ((_, adapter),) = find_transformers(model).values()
    count = sum(parameter.numel() for parameter in model.parameters())
    typer.echo(f"{name} in {folder}, {count / 1e6:.1f} M parameters\n{_row(adapter, type(model))}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        report = check(model, example_inputs(model))
    typer.echo(f"Checked with random inputs:\n{report}")
    return report


def _row(adapter: Adapter, kind: type) -> str:
    """Return an adapter in words."""
    named = "the name of cache_context, else " if hasattr(kind, "cache_context") else ""
    grid = " ".join((getattr(adapter.grid, "func", adapter.grid).__doc__ or "a function of its own").split())
    lines = {
        "blocks": ", then ".join(adapter.blocks),
        "probe": f"first input of a block's {adapter.attention}",
        "tail": adapter.tail,
        "idle": ", ".join(adapter.idle) or "nothing, beside blocks, at a skip step",
        "grid": f"from {grid[0].lower()}{grid[1:].rstrip('.')}",
        "contexts": f"told apart by {named}{adapter.key}",
    }
    return "\n".join(f"  {name:<10} {value}" for name, value in lines.items())


def _folder(model: str) -> Path:
    from tapstudy.instrument.adapters import ADAPTERS
    from tapstudy.models.embedded import data_folder

    embedded = data_folder() / "models"
    for folder in (embedded / model, Path(model)):
        if folder.is_dir():
            return folder
    known = sorted(path.parent.name for path in embedded.glob("*/model_index.json"))
    raise FileNotFoundError(
        f"no model {model!r}: give an embedded model ({', '.join(known) or 'none here'}), a folder written by "
        f"save_pretrained, or a transformer class: {', '.join(sorted(ADAPTERS))}"
    )


def _transformers(folder: Path) -> dict[Path, str]:
    """Return the supported transformers of a saved pipeline, or a saved transformer: folder and class."""
    from tapstudy.instrument.adapters import ADAPTERS, why_unsupported

    if (folder / "model_index.json").is_file():
        entries = read_json(folder / "model_index.json").items()
        classes = {folder / name: entry[1] for name, entry in entries if isinstance(entry, list) and entry[1]}
    elif (folder / "config.json").is_file():
        classes = {folder: read_json(folder / "config.json").get("_class_name", "a model without _class_name")}
    else:
        raise FileNotFoundError(
            f"{folder} holds neither model_index.json (a pipeline) nor config.json (a transformer): give a folder "
            "written by save_pretrained"
        )
    found = {path: name for path, name in classes.items() if name in ADAPTERS}
    if not found:
        raise TypeError(why_unsupported(str(folder), set(classes.values())))
    return found


def _load(folder: Path, name: str) -> Any:
    """Return a transformer of diffusers from safetensors; nothing else is ever loaded, and no code from the folder."""
    import diffusers
    from safetensors import SafetensorError

    try:
        return getattr(diffusers, name).from_pretrained(folder, use_safetensors=True, local_files_only=True).eval()
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"the {name} in {folder} cannot be loaded ({reason}); restore its files") from error
