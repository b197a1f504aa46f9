"""Runs settings over sets of images: what they make, and what it costs. It knows no method by name."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache, partial
from statistics import median
from time import perf_counter
from typing import Any, TypeVar
from uuid import uuid4
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.analysis.cluster import on_cluster
from tapstudy.bench.flops import StepFlops, transformer_flops
from tapstudy.bench.image_set import BATCH, ImageSet, pipe_of, weights_fingerprint
from tapstudy.bench.results import Results, short_hash
from tapstudy.core.anchors import Anchors
from tapstudy.core.schedule import mask_text
from tapstudy.instrument.handle import apply_policy
from tapstudy.instrument.smooth_time import smooth_time
from tapstudy.models.embedded import EmbeddedPipeline
from tapstudy.policies.base import Policy
from tapstudy.policies.fitted_schedule import FittedSchedule
from tapstudy.policies.full import FullPolicy

Told = tuple[str, float]  # the mask of the last call, and the bytes its history took (NaN: not told)
PLAIN = (bool, int, float, str, bytes, np.generic, torch.dtype, torch.device)  # told as they are
DIMS = ("frame", "band", "y", "x")  # of an image; those of a video have all of them
_warm: WeakSet[Any] = WeakSet()  # pipelines that have run
_own_texts: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
one_at_a_time = threading.RLock()  # a process has one copy of a model, and a policy sits on the model
Attach = Callable[[Any], AbstractContextManager[Callable[[], Told]]]


@dataclass(frozen=True)
class Setting:
    """Hold a way to sample.

    Attributes:
        attach: puts it on a pipeline for the length of a `with` block, which is given a function that tells mask and
            history of the last call.
        text: what it is, in full: equal texts give equal images.
        steps: of the sampler, if not those of the images.
        alone: it decides for a batch as a whole, so every image is sampled by itself.
        kind: class and residual of the policy: of one kind and method, steps cost the same on every schedule and clock.
    """

    attach: Attach = field(compare=False)
    text: str
    steps: int | None = None
    alone: bool = False
    kind: str = ""

    @classmethod
    def of(cls, policy: Policy, *, alone: bool | None = None) -> Setting:
        """Take a policy that has seen nothing. `alone` None: if the policy decides by what it sees."""

        @contextmanager
        def attach(pipe: Any) -> Iterator[Callable[[], Told]]:
            with apply_policy(pipe, policy) as handle:

                def told() -> Told:
                    summary = handle.summary()
                    return summary.mask, float(sum(context.cache_bytes for context in summary.contexts))

                yield told

        alone = policy.decides_by_probe if alone is None else alone
        return cls(attach, text_of(policy), alone=alone, kind=f"{type(policy).__name__} {policy.residual_site}")

    @classmethod
    def fitted(cls, schedule: FittedSchedule) -> Setting:
        """Take what `fit_schedule` found, under its clock."""
        return cls.of(schedule.policy()).on_smooth_clock(schedule.smooth_time)

    @classmethod
    def plain(cls, steps: int) -> Setting:
        """Return sampling without acceleration."""

        @contextmanager
        def attach(pipe: Any) -> Iterator[Callable[[], Told]]:
            if isinstance(pipe, EmbeddedPipeline):
                yield lambda: (mask_text(range(steps), steps), 0.0)
                return
            with apply_policy(pipe, FullPolicy()) as handle:  # image-to-image, say, runs fewer steps than it is told
                yield lambda: (handle.summary().mask, 0.0)

        return cls(attach, f"plain sampling, {steps} steps", steps=steps)

    @classmethod
    def third_party(cls, make: Callable[[Any], Any], text: str) -> Setting:
        """Take a cache of `bench.speed.third_party`. How much memory it holds is not told."""

        @contextmanager
        def attach(pipe: Any) -> Iterator[Callable[[], Told]]:
            with make(pipe) as cache:
                yield lambda: (cache.mask, float("nan"))

        return cls(attach, rounded(text), alone=True)

    def on_smooth_clock(self, sigma: float) -> Setting:
        """Return the same with the model smoothed by `smooth_time`; 0 changes nothing."""
        return self.within(lambda pipe: smooth_time(pipe, sigma), f"smoothed in time by {sigma:g}") if sigma else self

    def within(self, change: Callable[[Any], AbstractContextManager[Any]], text: str) -> Setting:
        """Return the same on a pipeline that is changed first; `text` tells this change from others."""

        @contextmanager
        def attach(pipe: Any) -> Iterator[Callable[[], Told]]:
            with change(pipe), self.attach(pipe) as told:
                yield told

        return replace(self, attach=attach, text=f"{self.text}, {text}")

    @property
    def name(self) -> str:
        """Return a name for files: equal settings have equal names."""
        kind = re.match(r"[\w-]*", self.text)
        assert kind is not None
        return f"{kind[0]}-{short_hash(self.text)}"


def text_of(policy: Policy) -> str:
    """Return class and settings of a policy that has seen nothing, in six digits; None counts as not set.

    What no text tells, such as a function or a module's weights, gets one of its own: images are made anew each time.
    """
    settings = {
        name: value for name, value in vars(policy).items() if not (value is None or isinstance(value, Anchors))
    }
    return rounded(f"{type(policy).__name__}({_named(settings)})")


def rounded(text: str) -> str:
    """Keep six digits of every number that has a point: fitted ones differ in the last bits from run to run."""
    return re.sub(r"\d+\.\d+(e[+-]?\d+)?", lambda found: f"{float(found[0]):.6g}", text)


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={_told(value)}" for name, value in values.items())


def _told(value: Any) -> str:
    """Tell a value apart from all that are not equal to it."""
    kind = type(value)
    if value is None or isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return repr(value.tolist())
    if isinstance(value, frozenset | set):
        return f"{{{', '.join(sorted(map(_told, value)))}}}"
    if kind is dict:
        return f"{{{', '.join(f'{_told(key)}: {_told(one)}' for key, one in value.items())}}}"
    if kind in (list, tuple):
        inside = ", ".join(map(_told, value))
        return f"[{inside}]" if kind is list else f"({inside}{',' * (len(value) == 1)})"
    if is_dataclass(value) and not isinstance(value, type):
        return (
            f"{kind.__qualname__}({_named({one.name: getattr(value, one.name) for one in fields(value) if one.repr})})"
        )
    if " at 0x" in (text := repr(value)) or isinstance(value, torch.nn.Module):
        return f"{kind.__qualname__} {_own_text(value)}"
    return text


def _own_text(value: Any) -> str:
    """Return a text that this object has as long as it lives, and no other one ever."""
    try:
        return _own_texts.setdefault(value, uuid4().hex)
    except TypeError:  # cannot be a key
        return uuid4().hex


def run(pipe: Any, images: ImageSet, setting: Setting) -> xr.Dataset:
    """Sample a set of images.

    Returns:
        `image` (sample, [frame,] band, y, x), clipped to [0, 1] or uint8 as `ImageSet.sample` has it, `mask` (F full,
        . skipped, s skipped with a pass beside), `cache_bytes` and `seconds` (of one image, on this machine, as loaded
        as it is), (sample), with `seed` and `label` on sample. Attributes `setting` and `weights` (their fingerprint).
    """
    made, masks, held, seconds = [], [], [], []
    _warm_up(pipe, images)
    with one_at_a_time, torch.no_grad(), setting.attach(pipe) as told:
        for batch in images.batches(1 if setting.alone else BATCH):
            started = perf_counter()
            images_of_batch = batch.sample(pipe, steps=setting.steps)
            made.append(images_of_batch.clamp(0, 1) if images_of_batch.is_floating_point() else images_of_batch)
            seconds += [(perf_counter() - started) / len(batch)] * len(batch)
            mask, cache_bytes = told()
            masks += [mask] * len(batch)
            held += [cache_bytes / len(batch)] * len(batch)
    return xr.Dataset(
        {
            "image": (("sample", *DIMS[1 - made[0].ndim :]), torch.cat(made).numpy()),
            "mask": ("sample", np.array(masks, dtype=object)),
            "cache_bytes": ("sample", held),
            "seconds": ("sample", seconds),
        },
        coords={"seed": ("sample", images.seeds), "label": ("sample", images.texts)},
        attrs={"setting": setting.text, "weights": weights_fingerprint(images.model)},
    )


def _warm_up(pipe: Any, images: ImageSet) -> None:
    """Run two steps, once: the first passes of a process are slower than the others."""
    if pipe not in _warm:
        with one_at_a_time, torch.no_grad():
            images[:1].run_transformer(pipe, 2)
        _warm.add(pipe)


Job = tuple[ImageSet, Setting]
Part = TypeVar("Part")


def kept(job: Job, results: Results, *, pipe: Any = None, progress: bool = False) -> xr.Dataset:
    """Do what `run` does, each job once: equal settings share their images, a file per unit (see `ImageSet.units`).

    Args:
        pipe: with the model of the images; loaded when it is needed if None.
        progress: show a bar where there are several units.
    """
    images, setting = job
    units = images.units()
    parts = [
        results.dataset(*_file(part, setting), lambda part=part: run(pipe or pipe_of(part.model), part, setting))  # type: ignore[misc]
        for part in tqdm(units, desc="images", leave=False, disable=not progress or len(units) < 2)
    ]
    return xr.concat(parts, dim="sample", combine_attrs="override")


def run_all(
    jobs: Sequence[Job], results: Results, *, scheduler: str | None = None, progress: bool = True
) -> dict[Job, str]:
    """Make what `kept` will read, a unit at a time; what is there already is not made again.

    A job that fails does not stop the others.

    Args:
        scheduler: address of a `dask.distributed` scheduler whose workers run the jobs, see `analysis.cluster`; None
            runs them here.

    Returns:
        Why jobs failed: of one unit each, as in `split`.

    Raises:
        ConnectionError: no scheduler or no workers there, or it went away; finished results are kept.
    """
    return spread(
        split(jobs), lambda part: _file(*part), run_job, results, scheduler=scheduler, progress=progress, unit="run"
    )


def spread(
    parts: Sequence[Part],
    file: Callable[[Part], tuple[str, dict[str, Any]]],
    make: Callable[[Part], xr.Dataset],
    results: Results,
    *,
    scheduler: str | None,
    progress: bool,
    unit: str,
) -> dict[Part, str]:
    """Make datasets and keep them, here or on workers, as `run_all` does.

    Args:
        parts: what to make, each once.
        file: name and key of the result of one; the key has the fingerprint `weights`.
        make: makes it, with the fingerprint of the weights that it used as attribute `weights`.
        unit: for the bar.

    Returns:
        Why parts failed.
    """
    failures: dict[Part, str] = {}
    missing = []
    for part in parts:
        try:
            if results.read(*file(part)) is None:
                missing.append(part)
        except (OSError, ValueError) as error:  # there is no such model
            failures[part] = f"{type(error).__name__}: {error}"
    outcomes = _here(make, missing) if scheduler is None else on_cluster(make, missing, scheduler)
    done = len(parts) - len(missing)
    with tqdm(total=len(parts), initial=done, desc=f"{unit}s", unit=unit, disable=not progress) as bar:
        for part, outcome in outcomes if missing else ():
            name, key = file(part)
            if isinstance(outcome, xr.Dataset) and outcome.attrs["weights"] != key["weights"]:
                outcome = ValueError(f"a worker has other weights of {key['model']} than this process")
            if isinstance(outcome, xr.Dataset):
                results.write(name, key, outcome)
            else:
                failures[part] = f"{type(outcome).__name__}: {outcome}"
                bar.set_postfix(failed=len(failures))
            bar.update()
    return failures


def split(jobs: Sequence[Job]) -> list[Job]:
    """Return jobs of one unit each, equal ones once."""
    return list(dict.fromkeys((part, setting) for images, setting in jobs for part in images.units()))


def run_job(job: Job) -> xr.Dataset:
    """Call `run` with the pipeline of the images' model."""
    return run(pipe_of(job[0].model), *job)


def _here(
    make: Callable[[Part], xr.Dataset], parts: Sequence[Part]
) -> Iterator[tuple[Part, xr.Dataset | BaseException]]:
    for part in parts:
        try:
            yield part, make(part)
        except Exception as error:
            yield part, error


def _file(images: ImageSet, setting: Setting) -> tuple[str, dict[str, Any]]:
    """Name and key of the result of one unit."""
    key = {"setting": setting.text, **images.key, "weights": weights_fingerprint(images.model)}
    return f"runs/{setting.name}-{short_hash(key)}", key


def run_flops(pipe: Any, image: ImageSet, setting: Setting) -> tuple[int, str]:
    """Count the FLOPs of one run of the transformer, and tell its mask."""
    with torch.no_grad(), setting.attach(pipe) as told:
        flops = transformer_flops(pipe, partial(image.run_transformer, pipe, setting.steps or image.steps))
        return flops, told()[0]


def step_flops(
    pipe: Any,
    image: ImageSet,
    setting: Setting,
    count: Callable[[Any, ImageSet, Setting], tuple[int, str]] = run_flops,
) -> StepFlops:
    """Count the FLOPs of a full step, and of a skip step of a setting, mean over those of one run of one image.

    Args:
        count: does what `run_flops` does, or remembers it.
    """
    # a part of the steps may be left out, as image-to-image does, of which an embedded model knows nothing
    total, mask = count(pipe, image, Setting.plain(1 if isinstance(pipe, EmbeddedPipeline) else image.steps))
    full = total / len(mask)
    total, mask = count(pipe, image, setting)
    skipped = len(mask) - mask.count("F")
    return StepFlops(full, (total - full * mask.count("F")) / skipped if skipped else 0.0)


def measure_costs(
    pipe: Any,
    image: ImageSet,
    settings: Mapping[str, Setting],
    *,
    repeats: int,
    progress: bool = True,
) -> xr.Dataset:
    """Measure FLOPs and wall time of one image.

    Every setting runs once to warm up, when FLOPs are counted, and then the settings alternate, so that a change of
    the machine's speed reaches all of them.

    Returns:
        `seconds_each` (cell, repeat), `seconds` (cell), their median, `flops_full` and `flops_skip` (cell), FLOPs of a
        full and of a skip step (see `bench/flops.py` for the convention).
    """
    count = lru_cache(partial(run_flops, pipe))
    times: dict[str, list[float]] = {name: [] for name in settings}
    flops: dict[str, StepFlops] = {}
    with tqdm(total=(1 + repeats) * len(settings), desc="costs", unit="run", disable=not progress) as bar:
        for repeat in range(1 + repeats):
            for name, setting in settings.items():
                if repeat == 0:
                    flops[name] = step_flops(pipe, image, setting, lambda _, *of: count(*of))
                else:
                    with torch.no_grad(), setting.attach(pipe):
                        started = perf_counter()
                        image.sample(pipe, steps=setting.steps)
                        times[name].append(perf_counter() - started)
                bar.update()
    return xr.Dataset(
        {
            "seconds_each": (("cell", "repeat"), np.array(list(times.values())).reshape(len(settings), repeats)),
            "seconds": ("cell", [median(found) if found else np.nan for found in times.values()]),
            "flops_full": ("cell", [flops[name].full for name in settings]),
            "flops_skip": ("cell", [flops[name].skip for name in settings]),
        },
        coords={"cell": list(settings)},
    )
