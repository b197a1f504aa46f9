"""Images under a setting, and what they cost; what is done is kept."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from tapstudy.bench.flops import count_flops
from tapstudy.bench.frontier_plan import FrontierPlan, Pair, Setting, batches
from tapstudy.bench.policy_runs import kept
from tapstudy.models.pipeline import LabelPipeline

BATCH = 10  # larger ones leave the processor's cache


def sample_pairs(
    pipe: LabelPipeline, pairs: Sequence[Pair], *, steps: int, guidance: float, clip: bool = True
) -> Tensor:
    """Images in [0, 1], or about that, (batch, band, row, column), from one call; every pair has its own noise."""
    generators = [torch.Generator().manual_seed(1000 * seed + label) for seed, label in pairs]
    (latents,) = pipe(
        [label for _, label in pairs],
        steps,
        guidance,
        generator=generators,
        output_type="latent",
        return_dict=False,
    )
    images = latents / 2 + 0.5
    return images.clamp(0, 1) if clip else images


def run_setting(pipe: LabelPipeline, plan: FrontierPlan, setting: Setting, pairs: Sequence[Pair]) -> xr.Dataset:
    """`image` (sample, band, y, x), `mask` and `cache_bytes` (of one image), (sample), of every pair."""
    images, masks, held = [], [], []
    with torch.no_grad(), setting.attach(pipe) as told:
        for batch in batches(pairs, size=1 if setting.alone else BATCH):
            images.append(sample_pairs(pipe, batch, steps=setting.steps or plan.steps, guidance=plan.guidance))
            mask, cache_bytes = told()
            masks += [mask] * len(batch)
            held += [cache_bytes / len(batch)] * len(batch)
    return xr.Dataset(
        {
            "image": (("sample", "band", "y", "x"), torch.cat(images).numpy()),
            "mask": ("sample", np.array(masks, dtype=object)),
            "cache_bytes": ("sample", held),
        },
        coords={"seed": ("sample", [seed for seed, _ in pairs]), "label": ("sample", [label for _, label in pairs])},
        attrs={"setting": setting.text},
    )


def kept_run(pipe: LabelPipeline, plan: FrontierPlan, setting: Setting, folder: Path) -> xr.Dataset:
    """`run_setting` on the test images; a file per seed, shared by equal settings, for a killed run to go on."""
    key = hashlib.sha256(setting.text.encode()).hexdigest()[:16]
    stem = re.match(r"[\w-]*", setting.text)[0]  # type: ignore[index]
    parts = [
        kept(
            folder / "runs" / f"{stem}-{key}-{seed}.nc",
            lambda seed=seed: run_setting(pipe, plan, setting, [(seed, label) for label in plan.labels]),  # type: ignore[misc]
        )
        for seed in plan.seeds
    ]
    return xr.concat(parts, dim="sample", combine_attrs="override")


def measure_costs(
    pipe: LabelPipeline, plan: FrontierPlan, settings: dict[str, Setting], *, repeats: int, progress: bool = True
) -> xr.Dataset:
    """FLOPs and wall time of one image, the first test image.

    Every setting runs once to warm up, when FLOPs are counted, and then the settings take turns, so that a change of
    the machine's speed reaches all of them.

    Returns:
        `seconds_each` (cell, repeat), `seconds` (cell), their median, `flops_full` and `flops_skip` (cell), FLOPs of a
        full and of a skip step (see `bench/flops.py` for the convention).
    """
    pair = plan.test_pairs[:1]

    def sample(setting: Setting) -> Tensor:
        return sample_pairs(pipe, pair, steps=setting.steps or plan.steps, guidance=plan.guidance)

    full = count_flops(lambda: sample_pairs(pipe, pair, steps=1, guidance=plan.guidance))
    times: dict[str, list[float]] = {name: [] for name in settings}
    skip = {}
    with tqdm(total=(1 + repeats) * len(settings), desc="costs", unit="run", disable=not progress) as bar:
        for turn in range(1 + repeats):
            for name, setting in settings.items():
                with torch.no_grad(), setting.attach(pipe) as told:
                    if turn == 0:
                        total = count_flops(lambda s=setting: sample(s))  # type: ignore[misc]
                        mask, _ = told()
                        others = len(mask) - mask.count("F")
                        skip[name] = (total - full * mask.count("F")) / others if others else 0.0
                    else:
                        started = perf_counter()
                        sample(setting)
                        times[name].append(perf_counter() - started)
                bar.update()
    return xr.Dataset(
        {
            "seconds_each": (("cell", "repeat"), np.array(list(times.values())).reshape(len(settings), repeats)),
            "seconds": ("cell", [median(found) if found else np.nan for found in times.values()]),
            "flops_full": ("cell", [float(full)] * len(settings)),
            "flops_skip": ("cell", [float(skip[name]) for name in settings]),
        },
        coords={"cell": list(settings)},
    )


def kept_costs(
    pipe: LabelPipeline,
    plan: FrontierPlan,
    settings: dict[str, Setting],
    path: Path,
    *,
    repeats: int,
    progress: bool = True,
) -> xr.Dataset:
    """`measure_costs`, measured anew as a whole unless the file holds these settings: one run for all rows."""
    told = "\n".join([f"{repeats} repeats", *(f"{name}: {setting.text}" for name, setting in settings.items())])
    key = hashlib.sha256(told.encode()).hexdigest()[:12]
    file = path.with_name(f"{path.stem}-{key}.nc")
    return kept(file, lambda: measure_costs(pipe, plan, settings, repeats=repeats, progress=progress))
