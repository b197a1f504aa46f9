"""Where a pipeline comes from: an embedded model, any diffusers folder, the hub, or one that is loaded already."""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, urlencode
from weakref import ref

import diffusers
import torch
from diffusers import DiffusionPipeline, SchedulerMixin
from diffusers.utils import logging as diffusers_logging
from torch import nn

from tapstudy.models.embedded import EMBEDDED, KINDS, data_folder, load, model_folder, weight_files
from tapstudy.models.machine import find_device

logger = logging.getLogger(__name__)

OFFLOADS = ("none", "model", "sequential")
DTYPES = ("float32", "bfloat16", "float16", "float64")
WHOLE = 1 << 20  # bytes of a file up to which all of it tells it apart
PIECE, PIECES = 1 << 16, 16  # of longer ones
VALUES = 16  # of a loaded weight
_given: dict[str, list[ref[Any]]] = {}  # loaded pipelines, by the name that `name_of` gave: equal ones share it


@dataclass(frozen=True)
class Source:
    """Tell what to load, and how: as text, "black-forest-labs/FLUX.1-dev?dtype=bfloat16&offload=model".

    Args:
        name: embedded model, folder written by `save_pretrained`, or id on the hub.
        device: "auto" is a GPU where there is one; embedded models then stay on the CPU.
        dtype: of the weights; "" is float32 on the CPU and bfloat16 on a GPU.
        offload: "model" or "sequential" keeps weights on the CPU until they are used (diffusers' own offloading).

    Raises:
        ValueError: an unknown dtype or way to offload.
    """

    name: str
    device: str = "auto"
    dtype: str = ""
    offload: str = "none"

    def __post_init__(self) -> None:
        for field, value, known in (("dtype", self.dtype, ("", *DTYPES)), ("offload", self.offload, OFFLOADS)):
            if value not in known:
                raise ValueError(f"{field} must be one of {', '.join(filter(None, known))}, got {value!r}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read what `str` writes.

        Raises ValueError on an option that there is not.
        """
        name, _, query = text.partition("?")
        options = {key: values[-1] for key, values in parse_qs(query, strict_parsing=bool(query)).items()}
        if unknown := sorted(set(options) - {"device", "dtype", "offload"}):
            raise ValueError(f"{text}: no option {', '.join(unknown)}: there are device, dtype and offload")
        return cls(name, **options)

    def with_options(self, **options: str) -> Self:
        """Return the same with options, of which those that are as usual change nothing."""
        usual = Source(self.name)
        return replace(self, **{name: value for name, value in options.items() if value != getattr(usual, name)})

    def __str__(self) -> str:
        """Write the options that are not the usual ones behind the name."""
        usual = Source(self.name)
        options = {name: value for name, value in vars(self).items() if value != getattr(usual, name)}
        return f"{self.name}?{urlencode(options, safe=':')}" if options else self.name


def open_pipeline(source: str | Path | Source) -> Any:
    """Load a pipeline.

    Args:
        source: embedded model, folder or hub id, with options as `Source` writes them.

    Raises:
        FileNotFoundError: no such folder or embedded model, and the hub has none or cannot be reached.
        ValueError: invalid options, a device that is not there, weights that cannot be read.
    """
    asked = source if isinstance(source, Source) else Source.parse(str(source))
    if asked.offload != "none" and not torch.cuda.is_available():
        raise ValueError(f"offload={asked.offload} moves weights to a GPU and back, and there is none: leave it out")
    folder = pipeline_folder(asked.name)
    ours = _is_embedded(folder)
    device = find_device("cpu" if ours and asked.device == "auto" else asked.device)
    dtype = getattr(torch, asked.dtype or ("float32" if ours else _usual_dtype(device)))
    if ours:
        pipe: Any = load(asked.name, dtype=dtype)
    else:
        try:
            with warnings.catch_warnings(), _quiet():
                # every version of diffusers knows this name
                warnings.filterwarnings("ignore", message=".*torch_dtype", category=FutureWarning)
                pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
        except (OSError, RuntimeError, ValueError, AttributeError, ImportError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"the pipeline in {folder} cannot be loaded ({reason})") from error
    # embedded ones are quick; of others the steps are shown, on a terminal
    pipe.set_progress_bar_config(**({"disable": True} if ours else {"disable": None, "desc": "steps", "leave": False}))
    if asked.offload == "model":
        pipe.enable_model_cpu_offload(device=device)
    elif asked.offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    else:
        pipe.to(device)
    return pipe


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep diffusers from drawing bars while it loads."""
    shown = diffusers_logging.is_progress_bar_enabled()
    diffusers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            diffusers_logging.enable_progress_bar()


def pipeline_folder(name: str | Path) -> Path:
    """Return the folder of an embedded model or a saved pipeline; one on the hub is fetched first, once.

    Raises:
        FileNotFoundError: there is none, or the hub cannot be reached.
    """
    if Path(name).is_dir() or name in EMBEDDED or (data_folder() / "models" / name).is_dir():
        folder = model_folder(name)
        if not (folder / "model_index.json").is_file():
            part = _class_in(folder / "config.json")
            found = f"a {part}, which is a part of a pipeline" if part else "no pipeline: model_index.json is missing"
            raise FileNotFoundError(f"{folder} holds {found}; give the folder of a whole pipeline")
        return folder
    known = ", ".join(sorted(path.parent.name for path in (data_folder() / "models").glob("*/model_index.json")))
    if str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        raise FileNotFoundError(
            f"no model {str(name)!r}: the embedded models are {known or 'none'}; else give a folder or a hub id"
        )
    return _downloaded(str(name))


@lru_cache
def _downloaded(name: str) -> Path:
    """Fetch a pipeline from the hub, which a process asks once."""
    logger.info("%s from the hub, unless it was fetched before", name)
    with hub_errors(
        f"no folder {name!r}, and the hub gives no pipeline of that name",
        "check the name, log in with `hf auth login` where the model asks for it, or give the folder of a saved "
        "pipeline",
    ):
        return Path(DiffusionPipeline.download(name))


@contextmanager
def hub_errors(what: str, then: str) -> Iterator[None]:
    """Turn what the hub raises in the block into a FileNotFoundError that says what is missing, why, and what to do."""
    try:
        yield
    except (OSError, ValueError) as error:  # the hub's errors are OSErrors
        raise FileNotFoundError(f"{what} ({str(error).strip().partition(chr(10))[0]}): {then}") from error


def pipeline_class(name: str) -> type[Any] | None:
    """Return the class of a pipeline without loading it, of one on the hub by its index alone; None if not known here.

    Raises ValueError where the index is not JSON.
    """
    if name.count("/") == 1 and not Path(name).is_dir():
        try:
            kind = DiffusionPipeline.load_config(name)["_class_name"]
        except (OSError, ValueError, KeyError):  # whoever loads it will say
            return None
    else:
        try:
            kind = _class_in(pipeline_folder(name) / "model_index.json")
        except FileNotFoundError:
            return None
    found = next((one for one in KINDS if one.__name__ == kind), None) or getattr(diffusers, str(kind), None)
    return found if isinstance(found, type) else None


def name_of(pipe: Any) -> str:
    """Give a loaded pipeline a name under which `pipe_of` finds it in this process, while it lives."""
    name = f"{type(pipe).__name__} in memory, {_fingerprint_of_loaded(pipe)}"
    alive = [one for one in _given.get(name, ()) if one() not in (None, pipe)]
    _given[name] = [ref(pipe), *alive]  # the others may have been changed since
    return name


def given(name: str) -> Any | None:
    """Return the pipeline that `name_of` named so; raises ValueError where it was, in another process or before."""
    found = next((pipe for one in _given.get(name, ()) if (pipe := one()) is not None), None)
    if found is None and " in memory, " in name:
        raise ValueError(f"{name} is not in this process: give the folder or hub id of a pipeline instead")
    return found


def is_embedded(model: str) -> bool:
    """Tell whether a source, or a pipeline that `name_of` named, is of the kind of the embedded models."""
    loaded = given(model)
    if loaded is not None:
        return isinstance(loaded, tuple(KINDS))
    return _is_embedded(pipeline_folder(Source.parse(model).name))


def fingerprint(model: str) -> str:
    """Tell the weights and settings of a source, or of a pipeline that `name_of` named, apart from others, by digits.

    Of files longer than 1 MiB it reads size and seventeen pieces: enough to notice other weights, not a flipped bit.
    """
    if given(model) is not None:
        return model.rpartition(" ")[-1]
    source = Source.parse(model)
    folder = pipeline_folder(source.name)
    usual = source.dtype or ("" if _is_embedded(folder) else _usual_dtype(find_device(source.device)))
    return _fingerprint_of_folder(folder, usual)


def _usual_dtype(device: torch.device) -> str:
    return "float32" if device.type == "cpu" else "bfloat16"


def _is_embedded(folder: Path) -> bool:
    """Tell whether a folder holds a pipeline of the kind of the embedded models."""
    return _class_in(folder / "model_index.json") in {kind.__name__ for kind in KINDS}


def _class_in(file: Path) -> str | None:
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}); restore the file") from error
    return found.get("_class_name") if isinstance(found, dict) else None


def _fingerprint_of_folder(folder: Path, dtype: str) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
    told = tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _fingerprint_of_files(folder, told, dtype)


@lru_cache
def _fingerprint_of_files(folder: Path, files: tuple[tuple[Path, int, int], ...], dtype: str) -> str:
    found = hashlib.sha256((folder / "model_index.json").read_bytes())
    if _is_embedded(folder):
        for file in weight_files(folder):
            found.update(file.read_bytes())
        for file, *_ in files:
            if file.suffix == ".json":  # scheduler, transformer, tokenizer
                found.update(f"{file.relative_to(folder)} ".encode() + file.read_bytes())
    else:
        for file, size, _ in files:
            _take_in(found, file, f"{file.relative_to(folder)} {size}")
    found.update(dtype.encode())
    return found.hexdigest()[:16]


def fingerprint_of_files(files: Sequence[Path]) -> str:
    """Tell files apart from others, likewise, by name, size and pieces."""
    found = hashlib.sha256()
    for file in files:
        _take_in(found, file, f"{file.name} {file.stat().st_size}")
    return found.hexdigest()[:16]


def _take_in(found: Any, file: Path, told: str) -> None:
    """Add what is told of a file, and its pieces, to a digest."""
    found.update(told.encode())
    size = file.stat().st_size
    with file.open("rb") as opened:
        if size <= WHOLE:
            found.update(opened.read())
            return
        for i in range(PIECES + 1):
            opened.seek((size - PIECE) * i // PIECES)
            found.update(opened.read(PIECE))


def _fingerprint_of_loaded(pipe: Any) -> str:
    """Tell by classes, configurations, some values of every weight, and plain settings that are not of either."""
    found = hashlib.sha256(f"{type(pipe).__name__} {dict(getattr(pipe, 'config', {}))}".encode())
    for name, part in sorted(pipe.components.items()):
        found.update(f"{name} {type(part).__name__} {getattr(part, 'config', None)}".encode())
        if isinstance(part, SchedulerMixin):
            found.update(f"shift {getattr(part, 'shift', None)}".encode())  # `set_shift` leaves the configuration
        if isinstance(part, nn.Module):
            for path, module in part.named_modules():
                found.update(f"{path} {_of_adapters(module)}".encode())
                for key, weight in module.named_parameters(recurse=False):
                    found.update(f"{path}.{key} {tuple(weight.shape)} {weight.dtype}".encode())
                    found.update(_some_values(module, key, weight))
    return found.hexdigest()[:16]


def _of_adapters(module: nn.Module) -> str:
    """Tell which LoRAs (of peft) a layer adds, and how strongly: no weight says so."""
    found = {name: getattr(module, name, None) for name in ("scaling", "active_adapters", "disable_adapters")}
    return " ".join(f"{name}={value}" for name, value in found.items() if isinstance(value, bool | dict | list))


def _some_values(module: nn.Module, key: str, weight: torch.Tensor) -> bytes:
    if weight.is_meta:  # offloaded: the hook holds it
        kept = getattr(getattr(module, "_hf_hook", None), "weights_map", None)
        if kept is None:
            return b""
        weight = kept[key]
    flat = weight.detach().reshape(-1)
    return flat[:: max(1, len(flat) // VALUES)][:VALUES].double().cpu().numpy().tobytes()


def free_memory() -> None:
    """Give back what a model that nobody holds any more took, on the GPU, too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
