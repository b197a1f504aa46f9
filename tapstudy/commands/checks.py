"""What every command checks before it samples or makes anything: where results go, the model, numbers."""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
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
    from tapstudy.bench.image_set import pipe_of
    from tapstudy.models.embedded import KINDS, data_folder

    kinds = [kind.__name__ for kind in KINDS]
    folder = next((found for found in (data_folder() / "models" / model, Path(model)) if found.is_dir()), Path(model))
    for name in ("model_index.json", "config.json"):
        kind = read_json(folder / name).get("_class_name") if (folder / name).is_file() else kinds[0]
        if kind not in kinds:
            raise ValueError(
                f"{model} holds a {kind}, and this command needs to know more of a model: give an embedded one such as "
                f"mnist-dit, or the folder of a {' or '.join(kinds)}. sample, record, ablate, compare and roughness "
                f"take any supported pipeline; `tapstudy info {model}` says whether it is one"
            )
    found: LabelPipeline | TextPipeline = pipe_of(model)
    return found


def labelled(model: str) -> LabelPipeline:
    """Load the model, which must sample labels.

    Raises:
        FileNotFoundError: no such model, or an incomplete one.
        ValueError: a pipeline of another kind, weights that cannot be read.
    """
    from tapstudy.models.pipeline import LabelPipeline

    pipe = embedded(model)
    if not isinstance(pipe, LabelPipeline):
        raise ValueError(f"{model} samples prompts, and this command samples labels: give a model such as mnist-dit")
    return pipe


def listed(model: str, text: str) -> tuple[LabelPipeline | TextPipeline, tuple[Any, ...]]:
    """Return an embedded model with the labels between commas, or the prompts between semicolons, of --labels.

    Without any, its first ten. Raises as `embedded` and `conditions_of` do.
    """
    pipe = embedded(model)
    return pipe, tuple(conditions_of(pipe, [text] if text else [], "--labels", examples=10))


def conditions_of(
    pipe: Any, asked: Sequence[Any], option: str, *, negative: str = "", examples: int = 4, repeats: bool = False
) -> list[Any]:
    """Return the labels or prompts that a pipeline is asked for; of an embedded one its examples, if for none.

    Says on stderr which words an embedded model has never seen.

    Args:
        asked: labels as text, several between commas; prompts, with --labels several between semicolons; or what
            `read_prompts` gives.
        option: that asks, for messages.
        negative: for prompts without a negative one of their own.
        repeats: one may come twice, where every image has a seed of its own.

    Raises:
        ValueError: none, one twice, labels or arguments that the pipeline does not take.
    """
    from tapstudy.bench.conditions import as_dict, check_conditions, with_negative
    from tapstudy.models.embedded import EmbeddedPipeline, conditions
    from tapstudy.models.pipeline import LabelPipeline
    from tapstudy.models.text_pipeline import TextPipeline

    if not asked and not isinstance(pipe, EmbeddedPipeline):
        raise ValueError(
            f"say what {type(pipe).__name__} should sample: give --prompt TEXT, --prompts FILE or --labels"
        )
    taken = check_arguments(type(pipe), asked, option, negative=negative)
    if not asked:
        found: list[Any] = list(conditions(pipe, 10 if isinstance(pipe, LabelPipeline) else examples))
    elif not all(isinstance(one, str) for one in asked):
        found = list(asked)
    elif isinstance(pipe, LabelPipeline) or ("class_labels" in taken and not isinstance(pipe, TextPipeline)):
        try:
            found = list(numbers(",".join(asked), int, option))
        except ValueError as error:
            raise ValueError(f"{error}: this model takes labels; for prompts, say --model emoji-flux") from None
    elif option == "--labels":
        found = [part.strip() for text in asked for part in text.split(";") if part.strip()]
    else:
        found = list(asked)
    if isinstance(pipe, LabelPipeline):
        count = pipe.transformer.config.num_embeds_ada_norm
        if wrong := [label for label in found if not isinstance(label, int) or not 0 <= label < count]:
            raise ValueError(f"{option}: class_labels must be integers in 0..{count - 1}, got {wrong}")
    found = with_negative(found, negative, option, repeats=repeats)
    check_conditions(found, option)
    check_arguments(type(pipe), found, option)
    if isinstance(pipe, TextPipeline):
        for one in found:
            if unknown := pipe.unknown_words(as_dict(one)["prompt"]):
                typer.echo(f"the model has never seen: {', '.join(unknown)}", err=True)
    return found


def check_arguments(
    kind: type[Any], asked: Sequence[Any], option: str, *, negative: str = ""
) -> Mapping[str, inspect.Parameter]:
    """Check that a class of pipelines takes what is asked of it, and return what it takes.

    Args:
        asked: as in `conditions_of`; of texts, which may be labels, nothing is checked.

    Raises:
        ValueError: an argument that it does not take, or a negative prompt.
    """
    from tapstudy.bench.conditions import Call, names_in

    taken = inspect.signature(kind.__call__).parameters
    if negative and "negative_prompt" not in taken:
        raise ValueError(f"--negative is of models of text that take one, and {kind.__name__} does not: leave it out")
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    for name in sorted({name for one in asked if isinstance(one, Call) for name in names_in(one)}):
        if name not in taken and not anything:
            raise ValueError(f"{option}: {kind.__name__} takes no argument {name}: it takes {', '.join(taken)}")
    return taken


def usual_guidance(pipe: Any) -> float | None:
    """Return the guidance scale that an embedded model samples with unless told otherwise; None for other pipelines."""
    from tapstudy.models.embedded import EmbeddedPipeline

    if not isinstance(pipe, EmbeddedPipeline):
        return None
    return float(inspect.signature(type(pipe).__call__).parameters["guidance_scale"].default)


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
