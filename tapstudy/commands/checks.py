"""What every command checks before it samples or makes anything: where results go, the model, numbers."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from tapstudy.models.pipeline import LabelPipeline
    from tapstudy.models.text_pipeline import TextPipeline


def out_file(path: Path, option: str, suffixes: Iterable[str]) -> Path:
    """Check the file that results will go to, `~` expanded; missing folders are made when there is something to write.

    Args:
        option: to name in messages.
        suffixes: what its name may end with, in lower case.

    Raises:
        ValueError: another suffix, a folder, or a place inside a recording.
        OSError: nothing can be written there.
    """
    path, known = path.expanduser(), sorted(suffixes)
    _check_recording(path, option)
    if path.is_dir():
        raise ValueError(f"{option} {path} is a folder: name a file, such as {path / f'NAME{known[0]}'}")
    if path.suffix.lower() not in known:
        raise ValueError(f"{option} {path} must end with {' or '.join(known)}")
    _check_writable(path.parent, f"{option} {path}")
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"{option} {path} exists and cannot be written: name another file")
    return path


def out_folder(path: Path, option: str) -> Path:
    """Check the folder that results will go to, `~` expanded; it is made when there is something to write.

    Raises:
        ValueError: a file, or a recording or a place inside one.
        OSError: nothing can be written there.
    """
    path = path.expanduser()
    _check_recording(path, option)
    _check_writable(path, f"{option} {path}")
    return path


def embedded(model: str) -> LabelPipeline | TextPipeline:
    """Load an embedded model, or one of the same kind in a folder, quiet.

    Raises:
        FileNotFoundError: no such model, or an incomplete one.
        ValueError: a pipeline of another kind, weights that cannot be read.
    """
    from tapstudy import load
    from tapstudy.models.embedded import KINDS, data_folder

    kinds = [kind.__name__ for kind in KINDS]
    folder = next((found for found in (data_folder() / "models" / model, Path(model)) if found.is_dir()), Path(model))
    for name in ("model_index.json", "config.json"):
        kind = read_json(folder / name).get("_class_name") if (folder / name).is_file() else kinds[0]
        if kind not in kinds:
            raise ValueError(
                f"{model} holds a {kind}, and this command samples labels or prompts: give an embedded model such as "
                f"mnist-dit, or the folder of a {' or '.join(kinds)}. `tapstudy info {model}` says whether TAP works "
                "on it, and tapstudy.tap(pipeline) accelerates it"
            )
    pipe = load(model)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def labelled(model: str, labels: Sequence[int] = (), option: str = "--labels") -> LabelPipeline:
    """Load the model, which must sample labels, and know these.

    Raises:
        FileNotFoundError: no such model, or an incomplete one.
        ValueError: a pipeline of another kind, a label that it does not know, weights that cannot be read.
    """
    from tapstudy.models.pipeline import LabelPipeline

    pipe = embedded(model)
    if not isinstance(pipe, LabelPipeline):
        raise ValueError(f"{model} samples prompts, and this command samples labels: give a model such as mnist-dit")
    count = pipe.transformer.config.num_embeds_ada_norm
    if wrong := [label for label in labels if not 0 <= label < count]:
        raise ValueError(f"{option}: class_labels must be integers in 0..{count - 1}, got {wrong}")
    return pipe


def listed(model: str, text: str, option: str = "--labels") -> tuple[LabelPipeline | TextPipeline, tuple[Any, ...]]:
    """Return the model with the labels between commas, or the prompts between semicolons, of an option's text.

    Without any, its first ten. Raises as `asked_of` does.
    """
    asked = [part.strip() for part in text.split(";") if part.strip()]
    pipe, found = asked_of(model, asked, option, examples=10)
    return pipe, tuple(found)


def asked_of(
    model: str, asked: Sequence[str], option: str, *, examples: int = 4
) -> tuple[LabelPipeline | TextPipeline, list[Any]]:
    """Return the model with the labels (separated by commas) or the prompts that it is asked for, or its examples.

    Says on stderr which words a model has never seen. Raises as `embedded` and `labelled` do.
    """
    from tapstudy.models.embedded import conditions
    from tapstudy.models.pipeline import LabelPipeline

    pipe = embedded(model)
    if not asked:
        return pipe, list(conditions(pipe, 10 if isinstance(pipe, LabelPipeline) else examples))
    if isinstance(pipe, LabelPipeline):
        labels = list(numbers(",".join(asked), int, option))
        return labelled(model, labels, option), labels
    for prompt in asked:
        if unknown := pipe.unknown_words(prompt):
            typer.echo(f"{model} has never seen: {', '.join(unknown)}", err=True)
    return pipe, list(asked)


def wanted_of(model: str, labels: str, prompt: Sequence[str] | None) -> tuple[LabelPipeline | TextPipeline, list[Any]]:
    """Load the model with what the options --labels or --prompt ask for; raises as `asked_of` does."""
    if labels and prompt:
        raise ValueError("--labels and --prompt are of different models: give one of them")
    return asked_of(model, prompt or ([labels] if labels else []), "--prompt" if prompt else "--labels")


def usual_guidance(pipe: LabelPipeline | TextPipeline) -> float:
    """Return the guidance scale that a pipeline samples with unless told otherwise."""
    return float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)


def negative_prompt(pipe: LabelPipeline | TextPipeline, text: str) -> dict[str, str]:
    """Return the argument that leads away from a text; raises ValueError for models of labels."""
    from tapstudy.models.pipeline import LabelPipeline

    if text and isinstance(pipe, LabelPipeline):
        raise ValueError("--negative is of models of text, and this one samples labels: leave it out")
    return {"negative_prompt": text} if text else {}


def at_least(low: float, **options: float | None) -> None:
    """Raise ValueError for an option, `guidance` for --guidance, that is no finite number or is below `low`."""
    for name, value in options.items():
        if value is not None and not (math.isfinite(value) and value >= low):
            raise ValueError(f"--{name.replace('_', '-')} must be a finite number of at least {low:g}, got {value}")


def seeds_of_noise(seeds: Sequence[int], option: str) -> tuple[int, ...]:
    """Return the seeds; raises ValueError for one that torch's generators do not take."""
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**64]:
        raise ValueError(f"{option} must be at least 0 and below 2**64, got {', '.join(map(str, wrong))}")
    return tuple(seeds)


def read_json(path: Path) -> dict[str, Any]:
    """Return a JSON object; raises ValueError, naming the file, for anything else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore the file") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a JSON object, got {type(content).__name__}; restore the file")
    return content


def _check_recording(path: Path, option: str) -> None:
    for folder in (path.absolute(), *path.absolute().parents):
        if (folder / "zarr.json").is_file():
            raise ValueError(f"{option} {path} would write into the recording {folder}: name another place")


def _check_writable(folder: Path, what: str) -> None:
    """Raises an OSError unless `folder`, or the first one above it that is there, takes files; it leaves none."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(place))
    if not there.is_dir():
        raise NotADirectoryError(f"{what} cannot be written: {there} is not a folder; name another place")
    try:
        with TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise PermissionError(
            f"{what} cannot be written: {there} takes no files ({reason}); name another place"
        ) from None


LABELS = "labels between commas, or prompts between semicolons; the first ten by default"


def numbers(text: str, kind: type[int] | type[float], option: str) -> tuple[Any, ...]:
    """Return finite numbers separated by commas; raises ValueError naming the option."""
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = (math.nan,)
    if not all(map(math.isfinite, found)):
        raise ValueError(f"{option} must be numbers separated by commas, got {text!r}")
    return found


def find_dtype(name: str, option: str) -> Any:
    """Return the floating torch dtype of that name.

    Raises ValueError on another name, naming the option.
    """
    import torch

    names = ("float32", "bfloat16", "float16", "float64")
    if name not in names:
        raise ValueError(f"{option} must be one of {', '.join(names)}, got {name!r}")
    return getattr(torch, name)
