"""Methods side by side on one pipeline: images, masks, cost, and distance to the images without acceleration."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.analysis.stats import BOUNDS, interval_where_finite
from tapstudy.bench.conditions import IMAGES, VIDEOS, Call, Condition, check_conditions, check_one_size, with_negative
from tapstudy.bench.engine import DIMS, Setting, kept
from tapstudy.bench.flops import transformer_flops
from tapstudy.bench.image_error import MASK, MEASURES, measures, unit_images
from tapstudy.bench.image_set import ImageSet, pipe_of, weights_fingerprint
from tapstudy.bench.judge import Judge
from tapstudy.bench.methods import find_method
from tapstudy.bench.plan import WARMUP
from tapstudy.bench.results import Results, short_hash
from tapstudy.models.sources import name_of
from tapstudy.policies.base import Policy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.fitted_schedule import FittedSchedule
from tapstudy.tables import percent

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
    progress: bool = True,
) -> xr.Dataset:
    """Sample prompts under every method, from the same noise, and compare with the reference.

    Args:
        pipe: any pipeline with a supported transformer.
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
        progress: show a bar.

    Returns:
        Dims `run` (reference first) and `sample`. `VARIABLES`, the further measures, `mask` (run, sample) and `image`
        (run, sample, [frame,] band, y, x); `psnr_interval` (run, bound), mean and 95 % by bootstrap over samples.
        Coordinates `method`, `interval` (0 where there is none), `setting` on run, `seed` and `label` on sample.

    Raises:
        TypeError: no supported transformer, something that is no method.
        ValueError: an unknown method, one that has to be fitted, no prompts, no method that runs on this pipeline.

    A method that fails is left out with a warning; the attribute `left_out` tells why.

    Cost: an image for every run, prompt and seed, and one more a run to count FLOPs. Memory: all images.
    """
    asked = with_negative([Call.of(one) if isinstance(one, Mapping) else one for one in prompts], "", "prompts")
    images = ImageSet.of(name_of(pipe), seeds=tuple(seeds), labels=asked, steps=steps, guidance=guidance)
    table = compare_images(
        images, methods, intervals=intervals, reference=reference, metrics=metrics, folder=folder, progress=progress
    )
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
    progress: bool = True,
) -> xr.Dataset:
    """Do what `compare` does for a set of images."""
    check_conditions(images.labels, "prompts")
    check_one_size(images.labels, "prompts")
    if len(set(images.pairs)) < len(images):
        raise ValueError("compare: a seed or a prompt stands there twice, which makes the same image: leave one out")
    rows = rows_of(methods, intervals, reference, images.steps)
    place: AbstractContextManager[str] = TemporaryDirectory() if folder is None else nullcontext(str(folder))
    with place as path:
        results = Results(path)
        return _table(images, rows, results, metrics or {}, progress)


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
    progress: bool,
) -> xr.Dataset:
    pipe, judge = pipe_of(images.model), Judge.of(images.model)
    found: dict[str, list[Any]] = {name: [] for name in (*VARIABLES, *metrics, "mask", "image")}
    exact: xr.Dataset | None = None
    left_out: dict[str, str] = {}
    done = []
    for row in tqdm(rows, desc="compare", unit="run", disable=not progress):
        name, interval, _, setting = row
        try:
            run = kept((images, setting), results, pipe=pipe, progress=progress)
            # (sample, kind)
            costs = np.array([mean_step_flops(pipe, image, setting, results) for image in alike(images)])
        except Exception as error:
            if exact is None:
                raise
            left_out[f"{name}, N = {interval}" if interval else name] = f"{type(error).__name__}: {error}"
            continue
        done.append(row)
        exact = exact if exact is not None else run
        values = measures(run, exact, judge)
        values["seconds"] = run["seconds"].values
        passes = np.array([(mask.count("F"), len(mask) - mask.count("F")) for mask in run["mask"].values])
        values["flops"] = (passes * costs).sum(axis=1)
        values |= {
            key: metric(unit_images(run), unit_images(exact), images.prompts) for key, metric in metrics.items()
        }  # fmt: skip
        for key, value in values.items():
            found[key].append(np.asarray(value, dtype=np.float64))
        found["mask"].append(run["mask"].values)
        found["image"].append(run["image"].values)
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
                ("run", "sample", *DIMS[2 - np.stack(found["image"]).ndim :]), np.stack(found["image"]),
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
        interval = xr.concat([alone, alone * np.nan, alone * np.nan], xr.Variable("bound", list(BOUNDS))).T
        return table.assign(psnr_interval=interval.drop_vars(["seed", "label"]).assign_attrs(table["psnr"].attrs))
    return table.assign(psnr_interval=interval_where_finite(table["psnr"]))


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
        return Setting.of(asked.policy()).on_smooth_clock(asked.smooth_time)
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


def mean_step_flops(pipe: Any, image: ImageSet, setting: Setting, results: Results) -> tuple[float, float]:
    """Count the FLOPs of a full and of a skip step of one image, mean over those of one run."""
    plain, steps = _counted(pipe, image, Setting.plain(image.steps), results)
    total, mask = _counted(pipe, image, setting, results)
    full, skipped = plain / len(steps), len(mask) - mask.count("F")
    return full, (total - full * mask.count("F")) / skipped if skipped else 0.0


def _counted(pipe: Any, image: ImageSet, setting: Setting, results: Results) -> tuple[int, str]:
    """Return FLOPs and mask of one run, counted once."""

    def make() -> list[Any]:
        with torch.no_grad(), setting.attach(pipe) as told:
            run = partial(image.run_transformer, pipe, setting.steps or image.steps)
            return [transformer_flops(pipe, run), told()[0]]

    key = {"setting": setting.text, **image.key, "weights": weights_fingerprint(image.model)}
    flops, mask = results.value(f"flops/{setting.name}-{short_hash(key)}", key, make)
    return flops, mask


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


def table_rows(table: xr.Dataset, further: Sequence[str] = ()) -> list[list[str]]:
    """Return the comparison as rows of text, see `COLUMNS`.

    Args:
        further: measures to add.
    """
    rows = []
    for i in range(table.sizes["run"]):
        run = table.isel(run=i)
        masks = list(dict.fromkeys(run["mask"].values))
        mean, low, high = run["psnr_interval"].values
        rows.append([
            f"{int(run.interval)}" if int(run.interval) else "",
            str(run.method.item()),
            f"{float(run.full_passes.mean()):g}",
            masks[0] if len(masks) == 1 else f"{masks[0]} and {len(masks) - 1} others",
            f"{float(run.flops_ratio.mean()):.2f}",
            f"{float(table['seconds'].isel(run=0).sum() / run['seconds'].sum()):.2f}",
            "-" if i == 0 or not np.isfinite(mean) else with_bounds(mean, low, high),
            f"{float(run.ssim.mean()):.3f}",
            percent(float(run.correct.mean())),
            *(f"{float(run[name].mean()):.4g}" for name in further),
        ])  # fmt: skip
    return rows


def with_bounds(mean: float, low: float, high: float) -> str:
    """Write a mean with its interval, if there is one."""
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(low) else f"{mean:.2f}"


COLUMNS = (
    "N", "method", "full passes", "step mask (F full, . skipped)", "FLOPs ratio", "latency ratio",
    "PSNR to reference [95 %], dB", "SSIM", "label accuracy",
)  # fmt: skip
