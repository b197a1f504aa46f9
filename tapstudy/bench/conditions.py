"""What images are of: labels, prompts, or any arguments of a pipeline's call; and how they are read from a file."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

IMAGES = ("image", "mask_image", "control_image", "last_image", "ip_adapter_image")
VIDEOS = ("video", "conditioning_video", "control_video", "mask_video")
PROMPT = re.compile(r"(negative_)?prompt(_\d+)?")  # names of arguments that are texts, whatever they look like
OURS = ("num_inference_steps", "sigmas", "timesteps", "generator", "output_type", "return_dict",
        "num_images_per_prompt", "num_videos_per_prompt", "callback_on_step_end")  # fmt: skip
SIZES = ("height", "width", "num_frames")


@dataclass(frozen=True)
class Call:
    """Hold arguments of a pipeline's call, of one image: prompt, negative_prompt, height, the path of an image.

    Attributes:
        arguments: names and values, sorted by name; lists are tuples, and mappings `Pairs`.
    """

    arguments: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Self:
        """Take arguments as JSON could hold them.

        Raises:
            TypeError: it could not.
        """
        json.dumps(dict(arguments))
        return cls(tuple((name, _frozen(arguments[name])) for name in sorted(arguments)))

    def to_dict(self) -> dict[str, Any]:
        """Return the arguments."""
        return {name: _thawed(value) for name, value in self.arguments}

    @property
    def beside_prompt(self) -> dict[str, Any]:
        """Return the arguments but for the prompts: what may change the size of an image."""
        return {name: value for name, value in self.to_dict().items() if not name.endswith("prompt")}

    def __str__(self) -> str:
        """Return the prompt, with whatever else there is behind it."""
        own = self.to_dict()
        prompt = own.pop("prompt", "")
        return f"{prompt} {json.dumps(own)}".strip() if own else str(prompt)


Condition = int | str | Call  # a label, a prompt, or more


def arguments_of(conditions: Sequence[Condition]) -> dict[str, Any]:
    """Return the arguments of one call that makes images of these conditions; what paths name is loaded.

    Raises:
        ValueError: several that are not alike.
        FileNotFoundError: no image or video at a path.
    """
    if all(isinstance(one, int) for one in conditions):
        return {"class_labels": list(conditions)}
    if all(isinstance(one, str) for one in conditions):
        return {"prompt": list(conditions)}
    first = conditions[0]
    if len(conditions) > 1 or not isinstance(first, Call):
        raise ValueError(
            f"{len(conditions)} images with arguments of their own (a CSV of several columns) are made by as many "
            "calls, and here there is one: give one row at a time, or prompts alone"
        )
    return {name: _loaded(name, value) for name, value in first.to_dict().items()}


def noise_seed(seed: int, condition: Condition, *, few: bool = False) -> int:
    """Tell what an image's generator is seeded with: it differs from label to label, and from prompt to prompt.

    Of a call only the prompt counts, so that other arguments, and where its files are, leave the noise as it is.

    Args:
        few: one of a thousand for every seed, as the images of the embedded models have been published; of some tens of
            prompts two may then share their noise. Else one of 2**32: torch's generator of the CPU tells no more apart.
    """
    if isinstance(condition, int):
        return 1000 * seed + condition
    text = condition if isinstance(condition, str) else str(condition.to_dict().get("prompt", ""))
    if few:
        return 1000 * seed + zlib.crc32(text.encode()) % 1000
    return int.from_bytes(hashlib.sha256(f"{seed} {text}".encode()).digest()[:4], "big")


def read_prompts(path: str | Path) -> list[Condition]:
    """Read prompts from a file: one a line; or, of a `.csv`, one a row, with columns named like arguments of the call.

    Numbers are numbers, true and false are booleans, lists and mappings are as in JSON, but columns of prompts always
    hold text; empty fields are left out; paths of images and videos in columns such as `image` or `video` are relative
    to the file.

    Args:
        path: of the file; empty lines, and those that begin with #, are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no prompts in it, a row of another length than the header, the same prompt twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no file of prompts at {path}: give one with a prompt a line, or a CSV with a header")
    if path.suffix.lower() == ".csv":
        found: list[Condition] = [_row(path, line, row) for line, row in _rows(path)]
    else:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        found = [line for line in lines if line and not line.startswith("#")]
    return with_negative(found, "", str(path))


def with_negative(asked: Sequence[Condition], negative: str, where: str, *, repeats: bool = False) -> list[Condition]:
    """Give prompts without a negative one of their own this one.

    Args:
        where: they come from, for messages.
        repeats: one may come twice, where every image has a seed of its own.

    Raises:
        ValueError: no prompts, or one twice: their images would be the same.
    """
    found = list(asked)
    if negative:
        found = [Call.of({"negative_prompt": negative, **as_dict(one)}) for one in found]
    if not found:
        raise ValueError(f"{where} holds no prompts")
    if not repeats and (twice := [one for one in found if found.count(one) > 1]):
        raise ValueError(f"{where}: {str(twice[0])!r} stands there twice, which makes the same image: give more seeds")
    return found


def check_conditions(conditions: Sequence[Condition], where: str) -> None:
    """Check what can be before anything runs.

    Args:
        where: they come from, for messages.

    Raises:
        ValueError: arguments that say how it is sampled, which is the same for all and not up to a prompt.
        FileNotFoundError: no image or video at a path.
    """
    for one in conditions:
        if ours := [name for name in names_in(one) if name in OURS]:
            raise ValueError(
                f"{where}: {', '.join(ours)} is the same for all images and no matter of a prompt: leave it out"
            )
        for name, path in _paths(one):
            if not Path(path).is_file():
                raise FileNotFoundError(f"{where}: no file at {path}, which the argument {name} names")


def check_one_size(conditions: Sequence[Condition], where: str) -> None:
    """Raise ValueError for images of several sizes, which are not compared or averaged together."""
    sizes = {tuple(as_dict(one).get(name) for name in SIZES) for one in conditions}
    if len(sizes) > 1:
        told = "; ".join(sorted(" x ".join(str(value or "usual") for value in size) for size in sizes))
        raise ValueError(f"{where}: images must be of one {' x '.join(SIZES)}, got {told}: run it once for each size")


def files_in(condition: Condition) -> list[str]:
    """List the paths of images and videos on this machine that a condition names."""
    return [path for _, path in _paths(condition)]


def file_digits(path: str) -> str:
    """Tell what a file holds by sixteen digits; "" where there is none, which whoever reads it will say."""
    try:
        told = Path(path).stat()
    except OSError:
        return ""
    return _file_digits(path, told.st_size, told.st_mtime_ns)


@lru_cache(maxsize=4096)
def _file_digits(path: str, _size: int, _changed: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _paths(condition: Condition) -> list[tuple[str, str]]:
    found = as_dict(condition).items() if isinstance(condition, Call) else ()
    return [
        (name, value)
        for name, value in found
        if name in (*IMAGES, *VIDEOS) and isinstance(value, str) and "://" not in value
    ]


def names_in(condition: Condition) -> list[str]:
    """List the arguments of a call that a condition gives."""
    return list(as_dict(condition))


def as_dict(condition: Condition) -> dict[str, Any]:
    """Return the arguments of a call that makes one image of it."""
    if isinstance(condition, Call):
        return condition.to_dict()
    return {"class_labels" if isinstance(condition, int) else "prompt": condition}


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or ())
        rows = [(reader.line_num, row) for row in reader]
    if not names or not all(name and name.isidentifier() for name in names):
        raise ValueError(f"{path}: the first line must name arguments of the pipeline, got {names}")
    for line, row in rows:
        if None in row or None in row.values():
            raise ValueError(f"{path}, line {line}: has not as many fields as its header, which has {len(names)}")
    return rows


def _row(path: Path, line: int, row: Mapping[str, str]) -> Condition:
    given = {name: text for name, text in row.items() if text.strip()}
    try:
        arguments = {name: text if PROMPT.fullmatch(name) else _value(text) for name, text in given.items()}
    except ValueError as error:
        raise ValueError(f"{path}, line {line}: {error}") from error
    for name in (*IMAGES, *VIDEOS):
        if isinstance(arguments.get(name), str) and "://" not in arguments[name]:
            arguments[name] = str(path.parent.absolute() / Path(arguments[name]).expanduser())
    return arguments["prompt"] if set(arguments) == {"prompt"} else Call.of(arguments)


def _value(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    if text.strip()[0] in "[{":
        try:
            return json.loads(text)
        except ValueError as error:
            raise ValueError(f"{text!r} begins like a list or a mapping of JSON and is none ({error})") from error
    return text


def _loaded(name: str, value: Any) -> Any:
    from diffusers.utils import load_image, load_video

    if not isinstance(value, str) or name not in (*IMAGES, *VIDEOS):
        return value
    if "://" not in value and not Path(value).is_file():
        raise FileNotFoundError(f"no file at {value}, which the argument {name} names")
    return load_image(value) if name in IMAGES else load_video(value)


class Pairs(tuple[tuple[str, Any], ...]):
    """Names and values of a mapping, which can be hashed."""


def _frozen(value: Any) -> Any:
    if isinstance(value, Mapping):
        return Pairs((name, _frozen(part)) for name, part in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _thawed(value: Any) -> Any:
    if isinstance(value, Pairs):
        return {name: _thawed(part) for name, part in value}
    return list(map(_thawed, value)) if isinstance(value, tuple) else value
