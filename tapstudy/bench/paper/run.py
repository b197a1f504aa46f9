"""The paper's table on one's own pipeline: sample all rows, let the pipeline go, then judge, one network at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.bench.compare import Metric, kept_step_flops
from tapstudy.bench.engine import kept, run_all
from tapstudy.bench.flops import StepFlops
from tapstudy.bench.image_error import MASK, psnr, ssim, unit_images
from tapstudy.bench.image_set import ImageSet, forget_pipelines, pipe_of, weights_fingerprint
from tapstudy.bench.paper.metrics import METRICS, find_metrics, load_metrics, metric_fingerprint
from tapstudy.bench.paper.protocol import SOURCE, Protocol, Row
from tapstudy.bench.results import Results, short_hash
from tapstudy.models.machine import find_device
from tapstudy.models.sources import free_memory

PLAIN: dict[str, tuple[str, str, Callable[..., Any]]] = {
    "psnr": ("PSNR to the reference (data range 1)", "dB", psnr),
    "ssim": ("SSIM to the reference (data range 1)", "1", ssim),
}
MEASURES = ("speed", "image-reward", "clip", "psnr", "ssim", "lpips", "vbench")  # that are published


def run_paper(
    images: ImageSet,
    protocol: Protocol,
    work: str | Path,
    *,
    metrics: Sequence[str] = (),
    weights: str | Path | None = None,
    coefficients: Sequence[float] = (),
    device: str = "auto",
    scheduler: str | None = None,
    progress: bool = True,
) -> xr.Dataset:
    """Sample a set of images under every row of a protocol and judge them.

    Every image, and every value of a metric, is kept as soon as it is there: the same call resumes.

    Args:
        images: of a pipeline that `pipe_of` loads; whoever holds it besides keeps its memory.
        protocol: of the paper.
        work: folder of the results: an image of 1024 pixels takes 3 MB a row.
        metrics: names, see `load_metrics`; PSNR and SSIM are always there.
        weights: folder of their weights.
        coefficients: of TeaCache's polynomial, see `Protocol.rows`.
        device: of the metrics.
        scheduler: address of a `dask.distributed` scheduler whose workers sample (see `analysis.cluster`); None does it
            here. Metrics are computed here, once the images are there.
        progress: show bars of images; the pipeline shows its steps on a terminal.

    Returns:
        Dims `run` (the reference first), `sample`, `measure`. Every metric, `psnr`, `ssim`, `seconds`, `flops` and
        `full_passes` (run, sample), `mask` (run, sample), `flops_ratio` and `latency_ratio` (run: medians over images),
        `published` (run, measure; NaN: unknown). Coordinates `title` and `setting` on run, `seed` and `label` on
        sample. Rows that do not run are in the attribute `left_out`.

    Raises:
        ValueError, FileNotFoundError, ImportError: before anything is sampled, what metrics lack; later, what a method
            cannot do on this pipeline.

    Memory: the pipeline and an image, and later one metric and an image of two rows.
    """
    places = find_metrics(metrics, weights)
    if wrong := [name for name in places if METRICS[name].prompts and not all(_is_text(one) for one in images.prompts)]:
        raise ValueError(f"{', '.join(wrong)} read prompts, and {images.model} samples labels: leave out --metrics")
    target = find_device(device)
    rows = protocol.rows(images.steps, coefficients)
    running = [row for row in rows if row.setting is not None]
    results = Results(work)
    flops = _sample(images, running, results, scheduler, progress)
    forget_pipelines()
    batches = images.units()
    found: dict[str, Any] = {}
    for name, (_, _, measure) in PLAIN.items():
        found[name] = _values(name, (name, ""), partial(_plain, measure), running, batches, results, progress)
    for name in places:
        load = partial(_load, name, target, weights)
        key = (name, metric_fingerprint(places[name]))
        found[name] = _values(name, key, load, running, batches, results, progress)
    return _table(images, protocol, rows, found, flops, results)


def _sample(
    images: ImageSet, rows: Sequence[Row], results: Results, scheduler: str | None, progress: bool
) -> list[StepFlops]:
    """Make what is missing, image by image, and return the FLOPs of a full and of a skip step of every row."""
    jobs = {row.title: (images, row.setting) for row in rows if row.setting is not None}
    failed = run_all([*jobs.values()], results, scheduler=scheduler, progress=progress) if scheduler else {}
    pipe, flops = pipe_of(images.model), []
    kind = type(pipe).__name__
    with tqdm(total=len(rows) * len(images), desc="images", unit="image", disable=not progress) as bar:
        for title, (_, setting) in jobs.items():
            bar.set_postfix_str(title)
            if reasons := [why for (_, of), why in failed.items() if of == setting]:
                raise ValueError(f"{title} cannot run on {kind}: {reasons[0]}")
            try:
                flops.append(kept_step_flops(pipe, images[:1], setting, results))
                for part in images.units():
                    kept((part, setting), results, pipe=pipe)
                    bar.update(len(part))
            except (ValueError, TypeError, RuntimeError, ImportError) as error:
                raise ValueError(f"{title} cannot run on {kind}: {error}") from error
    return flops


def _is_text(prompt: object) -> bool:
    return isinstance(prompt, str) and bool(prompt)


def _load(name: str, device: torch.device, weights: str | Path | None) -> Metric:
    return load_metrics([name], device=device, weights=weights)[name]


def _plain(measure: Callable[..., torch.Tensor]) -> Metric:
    return lambda images, reference, prompts: measure(images, reference, data_range=1.0)


def _values(
    name: str,
    told: tuple[str, str],
    load: Callable[[], Metric],
    rows: Sequence[Row],
    batches: Sequence[ImageSet],
    results: Results,
    progress: bool,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return a metric of all images, (run, sample); it is loaded only if a value is missing, and let go in the end."""
    loaded: list[Metric] = []

    def make(row: Row, part: ImageSet) -> list[float]:
        if not loaded:
            loaded.append(load())
        own, exact = (
            unit_images(kept((part, setting), results)) for setting in (row.setting, rows[0].setting) if setting
        )
        return [float(value) for value in loaded[0](own, exact, part.prompts)]

    found = []
    bar = tqdm(total=len(rows) * len(batches), desc=name, unit="batch", disable=not progress)
    with bar:
        for row in rows:
            values: list[float] = []
            for part in batches:
                assert row.setting is not None
                key = {
                    "metric": told, "setting": row.setting.text, **part.key, "weights": weights_fingerprint(part.model)
                }  # fmt: skip
                values += results.value(f"metrics/{name}-{short_hash(key)}", key, partial(make, row, part))
                bar.update()
            found.append(values)
    if loaded:
        loaded.clear()
        free_memory()
    return np.array(found, dtype=np.float64)


def _table(
    images: ImageSet,
    protocol: Protocol,
    rows: Sequence[Row],
    found: dict[str, Any],
    flops: Sequence[Sequence[float]],
    results: Results,
) -> xr.Dataset:
    running = [row for row in rows if row.setting is not None]
    masks, seconds = [], []
    for row in running:
        assert row.setting is not None
        parts = [kept((part, row.setting), results).drop_vars("image") for part in images.units()]
        run = xr.concat(parts, dim="sample", combine_attrs="override")
        masks.append(run["mask"].values)
        seconds.append(run["seconds"].values)
    full = np.array([[mask.count("F") for mask in of_row] for of_row in masks])
    skipped = np.array([[len(mask) - mask.count("F") for mask in of_row] for of_row in masks])
    costs = np.array(flops, dtype=np.float64)
    spent = full * costs[:, :1] + skipped * costs[:, 1:]
    told = {name: (text, units) for name, (text, units, _) in PLAIN.items()}
    told |= {name: (METRICS[name].title, "1") for name in found if name in METRICS}
    values = {**found, "seconds": np.array(seconds), "flops": spent, "full_passes": full}
    told |= {
        "seconds": ("wall time of one image, on this machine, as loaded as it was", "s"),
        "flops": ("FLOPs of the transformer for one image (multiply-add = 2)", "1"),
        "full_passes": ("full passes of the model", "1"),
    }
    published = np.array([[row.published.get(name, np.nan) for name in MEASURES] for row in running])
    return xr.Dataset(
        {
            name: (("run", "sample"), value, {"long_name": told[name][0], "units": told[name][1]})
            for name, value in values.items()
        }
        | {
            "mask": (("run", "sample"), np.array(masks, dtype=object), {"long_name": MASK}),
            "flops_ratio": ("run", np.median(spent[:1], axis=1) / np.median(spent, axis=1)),
            "latency_ratio": ("run", np.median(values["seconds"][:1]) / np.median(values["seconds"], axis=1)),
            "published": (("run", "measure"), published, {"long_name": SOURCE}),
        },
        coords={
            "title": ("run", [row.title for row in running]),
            "setting": ("run", np.array([row.setting.text for row in running if row.setting], dtype=object)),
            "measure": list(MEASURES),
            "seed": ("sample", images.seeds),
            "label": ("sample", images.texts),
        },
        attrs={
            "model": images.model, "steps": images.steps, "paper_model": protocol.model,
            "guidance": "usual" if images.guidance is None else images.guidance,
            "weights": weights_fingerprint(images.model),
            "left_out": "\n".join(f"{row.title}: {row.why}" for row in rows if row.setting is None),
        },
    )  # fmt: skip
