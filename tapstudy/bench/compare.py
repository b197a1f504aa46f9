"""Methods side by side on one pipeline: images, masks, cost, and distance to the images without acceleration."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import torch
import xarray as xr
from dask.delayed import delayed
from tqdm.auto import tqdm

from tapstudy.analysis.stats import BOUNDS, interval_where_finite
from tapstudy.bench.conditions import IMAGES, VIDEOS, Call, Condition
from tapstudy.bench.engine import DIMS, Job, Setting, kept, run_all, run_flops, step_flops
from tapstudy.bench.flops import StepFlops
from tapstudy.bench.image_error import MASK, MEASURES, measures, unit_images
from tapstudy.bench.image_set import ImageSet, pipe_of, weights_fingerprint
from tapstudy.bench.judge import Judge
from tapstudy.bench.methods import find_method
from tapstudy.bench.plan import WARMUP
from tapstudy.bench.results import Results, results_in, short_hash
from tapstudy.instrument.belongs import check_schedule
from tapstudy.policies.base import Policy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fitted_schedule import FittedSchedule

METHODS = ("fewer", "order0", "order1", "order2", "tap")
REFERENCE = "reference"
Asked = str | Policy | FittedSchedule | Setting
Metric = Callable[[torch.Tensor, torch.Tensor, Sequence[Any]], torch.Tensor]
VARIABLES = {
    **MEASURES,
    "seconds": ("wall time of one image, on this machine, as loaded as it was", "s"),
    "flops": ("FLOPs of the transformer for one image (multiply-add = 2, products, convolutions, attention)", "1"),
    "flops_ratio": ("FLOPs of the reference over own", "1"),
    "latency_ratio": ("wall time of the reference over own", "1"),
}


def compare(
    pipe: Any,
    prompts: Sequence[Condition | Mapping[str, Any]],
    methods: Sequence[Asked] | Mapping[str, Asked] = METHODS,
    *,
    intervals: Sequence[int] = (8,),
    reference: Asked = REFERENCE,
    steps: int = 50,
    guidance: float | None = None,
    seeds: Sequence[int] = (0,),
    metrics: Mapping[str, Metric] | None = None,
    folder: str | Path | None = None,
    page: str | Path | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Sample prompts under every method, from the same noise, and compare with the reference.

    Args:
        pipe: any pipeline with a supported transformer; or its folder or hub id.
        prompts: prompts, labels, or mappings of arguments of the pipeline's call.
        methods: names of `bench.methods` that need no fitting ("fewer" is plain sampling with as many steps as there
            are full passes), a policy, what `fit_schedule` returned, or a `Setting`, such as
            `Setting.third_party(first_block_cache, "diffusers' first-block cache")`; as a mapping with names of
            one's own.
        intervals: N of the schedules S(N, 3) that named methods run on, each of them on each.
        reference: what the images are compared with, by default the pipeline as it is.
        steps: T.
        guidance: scale; None is the pipeline's usual one.
        seeds: every prompt is sampled with each.
        metrics: further measures by name: (images, reference images, prompts) -> (sample,), images in [0, 1],
            (sample, [frame,] band, y, x); see `bench.paper.metrics`.
        folder: keeps the results; the same call resumes, and further methods are added. None keeps nothing.
        page: HTML file to write: images side by side, differences, and the table.
        scheduler: address of a `dask.distributed` scheduler whose workers sample, each with a pipeline of its own (see
            `analysis.cluster`), which they load: `pipe` must be a folder or a hub id. None samples here.
        progress: show a bar.

    Returns:
        Dims `run` (reference first) and `sample`. `VARIABLES`, the further measures, `mask` (run, sample) and `image`
        (run, sample, [frame,] band, y, x); `psnr_interval` (run, bound), mean and 95 % by bootstrap over samples.
        Coordinates `method`, `interval` (0 where there is none), `setting` on run, `seed` and `label` on sample.

    Raises:
        TypeError: no supported transformer, something that is no method.
        ValueError: an unknown method, one that has to be fitted, a schedule of another class of pipelines, no prompts,
            no method that runs on this pipeline.

    A method that fails is left out with a warning; the attribute `left_out` tells why.

    Cost: an image for every run, prompt and seed, and one more a run to count FLOPs. Memory: one image of a run and of
    the reference; in a folder the images of the table are read when they are looked at, else they are in memory.
    """
    images = ImageSet.asked(pipe, prompts, seeds=tuple(seeds), steps=steps, guidance=guidance)
    table = compare_images(
        images, methods, intervals=intervals, reference=reference, metrics=metrics, folder=folder, scheduler=scheduler,
        progress=progress,
    )  # fmt: skip
    if page is not None:
        from tapstudy.explorer.comparison import write_comparison

        write_comparison(table, page)
    return table


def compare_images(
    images: ImageSet,
    methods: Sequence[Asked] | Mapping[str, Asked] = METHODS,
    *,
    intervals: Sequence[int] = (4, 6, 8),
    reference: Asked = REFERENCE,
    metrics: Mapping[str, Metric] | None = None,
    folder: str | Path | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Do what `compare` does for a set of images."""
    rows = rows_of(methods, intervals, reference, images.checked().steps)
    for one in methods.values() if isinstance(methods, Mapping) else methods:
        if isinstance(one, FittedSchedule):
            check_schedule(pipe_of(images.model), one)
    with results_in(folder) as results:
        failed: dict[Job, str] = {}
        if scheduler is not None:
            jobs = [(images, setting) for *_, setting in rows]
            failed = run_all(jobs, results, scheduler=scheduler, progress=progress)
        table = _table(images, rows, results, metrics or {}, failed, progress)
        return table.load() if folder is None else table


Run = tuple[str, int, str, Setting]  # name, N (0: none), title


def rows_of(
    methods: Sequence[Asked] | Mapping[str, Asked], intervals: Sequence[int], reference: Asked, steps: int
) -> list[Run]:
    """Return the runs of a comparison, the reference first.

    Raises:
        TypeError, ValueError: something that is no method, an unknown one, a schedule of another number of steps.
    """
    rows: list[Run] = [("reference", 0, *_of_name(reference, 1, steps))]
    named = dict(methods) if isinstance(methods, Mapping) else _named(methods)
    for name, one in named.items():
        if isinstance(one, FittedSchedule) and one.num_steps != steps:
            raise ValueError(
                f"{name} was fitted to {one.num_steps} steps, and these runs have {steps}: give --steps "
                f"{one.num_steps}, or fit another"
            )
    for interval in intervals:
        rows += [
            (name, interval, *_of_name(one, interval, steps)) for name, one in named.items() if isinstance(one, str)
        ]
    return rows + [(name, 0, name, _setting(one)) for name, one in named.items() if not isinstance(one, str)]


def _table(
    images: ImageSet,
    rows: Sequence[Run],
    results: Results,
    metrics: Mapping[str, Metric],
    failed: Mapping[Job, str],
    progress: bool,
) -> xr.Dataset:
    pipe, judge, parts = pipe_of(images.model), Judge.of(images.model), images.units()
    found: dict[str, list[Any]] = {name: [] for name in (*VARIABLES, *metrics, "mask", "image")}
    left_out: dict[str, str] = {}
    done: list[Run] = []
    bar = tqdm(total=len(rows) * len(images), desc="compare", unit="image", disable=not progress)
    with bar:
        for row in rows:
            name, interval, _, setting = row
            bar.set_postfix_str(name)
            try:
                if reasons := [failed[part, setting] for part in parts if (part, setting) in failed]:
                    raise RuntimeError(reasons[0])
                costs = [kept_step_flops(pipe, image, setting, results) for image in alike(images)]
                read = partial(kept, results=results, pipe=pipe)
                of_parts = []
                for part in parts:
                    of_parts.append(_measured(read((part, setting)), read((part, rows[0][3])), part, judge, metrics))
                    bar.update(len(part))
            except Exception as error:
                if not done:
                    raise
                left_out[f"{name}, N = {interval}" if interval else name] = f"{type(error).__name__}: {error}"
                continue
            done.append(row)
            values = {key: np.concatenate([one[key] for one in of_parts]) for key in of_parts[0]}
            values["flops"] = np.array([cost.of(mask) for cost, mask in zip(costs, values["mask"], strict=True)])
            values["image"] = _lazily([(part, setting) for part in parts], results)
            for key, value in values.items():
                found[key].append(value)
    if left_out:
        lines = "\n".join(f"  {name}: {reason}" for name, reason in left_out.items())
        warnings.warn(f"left out, because they failed on {type(pipe).__name__}:\n{lines}", RuntimeWarning, stacklevel=4)
    if len(done) < 2:
        raise ValueError(f"compare: no method ran on {type(pipe).__name__}: {left_out}")
    for key, source in (("flops_ratio", "flops"), ("latency_ratio", "seconds")):
        found[key] = [found[source][0] / one for one in found[source]]
    described = {**VARIABLES, **{name: (name, "1") for name in metrics}}
    table = xr.Dataset(
        {
            name: (("run", "sample"), np.stack(found[name]), {"long_name": text, "units": units})
            for name, (text, units) in described.items()
        }
        | {
            "mask": (("run", "sample"), np.stack(found["mask"]), {"long_name": MASK}),
            "image": (
                ("run", "sample", *DIMS[1 - found["image"][0].ndim :]), dask.array.stack(found["image"]),
                {"long_name": "image", "units": "1"},
            ),
        },
        coords={
            "method": ("run", [title for _, _, title, _ in done]),
            "interval": ("run", [interval for _, interval, _, _ in done]),
            "setting": ("run", np.array([setting.text for *_, setting in done], dtype=object)),
            "seed": ("sample", images.seeds),
            "label": ("sample", images.texts),
        },
        attrs={
            "model": images.model, "steps": images.steps,
            "guidance": "usual" if images.guidance is None else images.guidance,
            "weights": weights_fingerprint(images.model), "left_out": json.dumps(left_out),
        },
    )  # fmt: skip
    if table.sizes["sample"] < 2:  # no interval
        alone = table["psnr"].isel(sample=0)
        bounds = xr.concat([alone, alone * np.nan, alone * np.nan], xr.Variable("bound", list(BOUNDS))).T
        return table.assign(psnr_interval=bounds.drop_vars(["seed", "label"]).assign_attrs(table["psnr"].attrs))
    return table.assign(psnr_interval=interval_where_finite(table["psnr"]))


def _measured(
    own: xr.Dataset, exact: xr.Dataset, part: ImageSet, judge: Judge | None, metrics: Mapping[str, Metric]
) -> dict[str, Any]:
    """Return every measure of the images of one unit, (sample,)."""
    further = {key: metric(unit_images(own), unit_images(exact), part.prompts) for key, metric in metrics.items()}
    found = {**measures(own, exact, judge), "seconds": own["seconds"].values, **further}
    return {key: np.asarray(value, dtype=np.float64) for key, value in found.items()} | {"mask": own["mask"].values}


def _lazily(jobs: Sequence[Job], results: Results) -> Any:
    """Return kept images, (sample, [frame,] band, y, x), each read when it is looked at."""
    like = kept(jobs[0], results)["image"]
    values = delayed(lambda job: kept(job, results)["image"].values)
    return dask.array.concatenate([
        dask.array.from_delayed(values(job), (len(job[0]), *like.shape[1:]), like.dtype) for job in jobs
    ])  # fmt: skip


def _named(methods: Sequence[Asked]) -> dict[str, Asked]:
    """Give methods names; of different ones that would have the same, the later ones are numbered."""
    found: dict[str, Asked] = {}
    for one in methods:
        name, count = _name(one), 1
        while (title := name if count == 1 else f"{name} ({count})") in found and found[title] != one:
            count += 1
        found[title] = one
    return found


def _name(asked: Asked) -> str:
    if isinstance(asked, str):
        return asked
    if isinstance(asked, FittedSchedule):
        return "fitted schedule"
    return asked.name if isinstance(asked, Setting) else type(asked).__name__


def _setting(asked: Any) -> Setting:
    if isinstance(asked, Setting):
        return asked
    if isinstance(asked, FittedSchedule):
        return Setting.fitted(asked)
    if isinstance(asked, Policy):
        return Setting.of(asked)
    raise TypeError(f"a method is a name, a policy, a fitted schedule or a Setting, got {asked!r}")


def _of_name(asked: Asked, interval: int, steps: int) -> tuple[str, Setting]:
    """Return title and setting of a method on S(N, 3)."""
    if not isinstance(asked, str):
        return _name(asked), _setting(asked)
    method = find_method(asked)
    config = method.config(TAPConfig(interval=interval, warmup_steps=WARMUP))
    return method.title or method.name, method.setting(config, steps=steps)


def kept_step_flops(pipe: Any, image: ImageSet, setting: Setting, results: Results) -> StepFlops:
    """Do what `step_flops` does, each run counted once."""

    def count(pipe: Any, image: ImageSet, setting: Setting) -> tuple[int, str]:
        key = {"setting": setting.text, **image.key, "weights": weights_fingerprint(image.model)}
        name = f"flops/{setting.name}-{short_hash(key)}"
        flops, mask = results.value(name, key, lambda: list(run_flops(pipe, image, setting)))
        return flops, mask

    return step_flops(pipe, image, setting, count)


def alike(images: ImageSet) -> list[ImageSet]:
    """Return for every image the first one whose call has the same arguments but for prompts, pictures and seed."""
    first: dict[str, ImageSet] = {}
    found = []
    for image in images.batches(1):
        label = image.labels[0]
        given = label.beside_prompt if isinstance(label, Call) else {}
        key = json.dumps({name: value for name, value in given.items() if name not in (*IMAGES, *VIDEOS)})
        found.append(first.setdefault(key, image))
    return found
