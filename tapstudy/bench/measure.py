"""Runs one cell. Everything a cluster's worker needs is here."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import xarray as xr

from tapstudy.bench.cells import Cell
from tapstudy.bench.compare import Request
from tapstudy.bench.flops import StepFlops, step_flops
from tapstudy.bench.methods import find_method
from tapstudy.core.schedule import mask_text
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.classifier import Classifier, classify
from tapstudy.models.embedded import data_folder, load, load_classifier, untrained_like, weight_files
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.policies.config import TAPConfig

UNTRAINED = "-untrained"

_one_at_a_time = threading.Lock()  # a process has one copy of a model, and a policy sits on the model


def measure(cell: Cell) -> xr.Dataset:
    """The images of a cell and what they cost.

    Returns:
        `image` (sample, band, y, x), clipped to [0, 1], and `correct` (sample), with `seed` and `label` on sample.
        Attributes: `cell` (JSON), `mask`, `full_passes`, `seconds` (an image, on this machine), `flops` (an image; see
        `bench/flops.py` for the convention; an oracle's include the passes it runs beside), `weights` (fingerprint).

    Raises:
        FileNotFoundError: no such model.
        ValueError: settings that do not fit the model.
    """
    with _one_at_a_time:
        pipe = _pipe(cell.model)
        flops = _step_flops(cell.model, cell.method, cell.config, cell.guidance > 1)  # also warms up
        request = Request(labels=cell.labels, seeds=cell.seeds, steps=cell.steps, guidance_scale=cell.guidance)
        policy = cell.policy()
        steps = cell.steps if policy else len(cell.full_steps)
        with apply_policy(pipe, policy) if policy else nullcontext() as handle:
            started = time.perf_counter()
            images = request.sample(pipe, steps).clamp(0, 1)  # (B, band, row, column)
            seconds = time.perf_counter() - started
            mask = handle.summary().contexts[0].mask if handle else mask_text(range(steps), steps)
        labels = torch.tensor([label for _, label in request.pairs])
        correct = classify(classifier_of(cell.model), 2 * images - 1)[0] == labels  # (B,)
    return xr.Dataset(
        {
            "image": (("sample", "band", "y", "x"), images.numpy()),
            "correct": ("sample", correct.numpy().astype("int8")),
        },
        coords={"seed": ("sample", [seed for seed, _ in request.pairs]), "label": ("sample", labels.numpy())},
        attrs={
            "cell": json.dumps(cell.to_dict()),
            "mask": mask,
            "full_passes": mask.count("F"),
            "seconds": seconds / len(labels),
            "flops": float(flops.of(mask)),
            "weights": weights_fingerprint(cell.model),
        },
    )


def measure_on_worker(cell: dict[str, Any]) -> xr.Dataset:
    """`measure`, as a task for a worker of `dask.distributed`.

    A worker process loads a model once and runs one cell at a time, with as many torch threads as dask gave the worker.
    So one thread to a worker is best: `dask worker ADDRESS --nworkers 8 --nthreads 1`.
    """
    from distributed import get_worker

    before = torch.get_num_threads()
    torch.set_num_threads(get_worker().state.nthreads)
    try:
        return measure(Cell.from_dict(cell))
    finally:
        torch.set_num_threads(before)


@lru_cache
def weights_fingerprint(model: str) -> str:
    """Tells whether a result was made with the weights, and the pipeline's settings, that there are now."""
    name = model.removesuffix(UNTRAINED)
    folder = data_folder() / "models" / name
    if not folder.is_dir():
        folder = Path(name)
    found = hashlib.sha256((folder / "model_index.json").read_bytes())
    for file in weight_files(folder):
        found.update(file.read_bytes())
    return found.hexdigest()[:16]


@lru_cache(maxsize=2)
def classifier_of(model: str) -> Classifier:
    """The judge of a model's images; for images like those of no data set that of digits, which then says little."""
    try:
        return load_classifier(model.removesuffix(UNTRAINED))
    except ValueError:
        return load_classifier()


@lru_cache(maxsize=2)
def _pipe(model: str) -> LabelPipeline:
    pipe = load(model.removesuffix(UNTRAINED))
    if model.endswith(UNTRAINED):
        pipe = untrained_like(pipe)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@lru_cache(maxsize=256)
def _step_flops(model: str, method: str, config: TAPConfig, guided: bool) -> StepFlops:
    pipe, make = _pipe(model), find_method(method).policy
    request = Request(labels=(0,), seeds=(0,), guidance_scale=2.0 if guided else 1.0)
    anchors = tuple(range(config.family.num_anchors))  # full steps that fill the history
    policy = make(replace(config, full_steps=anchors, cooldown_steps=0), 0) if make else None
    return step_flops(pipe, policy, lambda steps: request.sample(pipe, steps=steps))
