"""Runs under policies that no cell of a sweep can express, such as TAP with another family."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import xarray as xr
from tqdm.auto import tqdm

from tapstudy.bench.cells import Cell
from tapstudy.bench.compare import Request
from tapstudy.bench.image_error import psnr, ssim
from tapstudy.instrument.handle import apply_policy
from tapstudy.models.pipeline import LabelPipeline
from tapstudy.netcdf import write_netcdf
from tapstudy.policies.base import Policy


def run_policies(
    pipe: LabelPipeline,
    policies: Mapping[str, Policy],
    references: Sequence[xr.Dataset],
    *,
    folder: Path,
    progress: bool = True,
) -> xr.Dataset:
    """The images of reference cells, made again under every policy.

    Args:
        pipe: with the model of the references.
        policies: name -> policy that has seen nothing.
        references: results of `measure` of reference cells.
        folder: keeps the images, a file per policy and reference in `policies`.

    Returns:
        `psnr`, `ssim` to the references and `full_passes`, (cell, sample), with `seed` and `label` on sample.
    """
    rows = []
    with tqdm(total=len(policies) * len(references), desc="policies", unit="run", disable=not progress) as bar:
        for name, policy in policies.items():
            parts = []
            for exact in references:
                cell = Cell.from_dict(json.loads(exact.attrs["cell"]))
                path = folder / "policies" / f"{name.replace(' ', '_')}-{'-'.join(map(str, cell.seeds))}.nc"
                own = kept(path, lambda p=policy, c=cell: _run(pipe, p, c))  # type: ignore[misc]
                parts.append(_compare(own, exact))
                bar.update()
            rows.append(xr.concat(parts, dim="sample"))
    return xr.concat(rows, dim="cell").assign_coords(cell=list(policies))


def kept(path: Path, make: Callable[[], xr.Dataset]) -> xr.Dataset:
    """What the file holds, in memory; made and written first if there is none."""
    if not path.exists():
        write_netcdf(make(), path)
    with xr.open_dataset(path, engine="netcdf4") as file:
        return file.load()


def _run(pipe: LabelPipeline, policy: Policy, cell: Cell) -> xr.Dataset:
    request = Request(labels=cell.labels, seeds=cell.seeds, steps=cell.steps, guidance_scale=cell.guidance)
    with apply_policy(pipe, policy) as handle:
        images = request.sample(pipe).clamp(0, 1)  # (B, band, row, column)
        passes = handle.summary().contexts[0].num_full
    return xr.Dataset({"image": (("sample", "band", "y", "x"), images.numpy())}, attrs={"full_passes": passes})


def _compare(own: xr.Dataset, exact: xr.Dataset) -> xr.Dataset:
    images, target = (torch.from_numpy(result["image"].values) for result in (own, exact))  # (B, band, row, column)
    return xr.Dataset(
        {
            "psnr": ("sample", psnr(images, target, data_range=1.0).numpy()),
            "ssim": ("sample", ssim(images, target, data_range=1.0).numpy()),
            "full_passes": ("sample", [float(own.attrs["full_passes"])] * len(images)),
        },
        coords={name: ("sample", exact[name].values) for name in ("seed", "label")},
    )
