"""Many cells, here or on a cluster; what is done is kept, and a killed sweep resumes where it stopped."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from tapstudy.bench.engine import run_all
from tapstudy.bench.results import Results
from tapstudy.bench.sweep.cells import Cell
from tapstudy.bench.sweep.table import tidy
from tapstudy.netcdf import write_netcdf


def sweep(
    cells: Sequence[Cell], folder: str | Path, *, scheduler: str | None = None, progress: bool = True
) -> xr.Dataset:
    """Run the cells, and the reference of each once, and put the results into one dataset.

    What is computed at a time is one setting with all labels of one seed (of pipelines other than the embedded ones:
    with one image). It goes to a file of its own in `folder`, whole or not at all. The same call again computes what is
    missing only: after a kill, with more cells, or with more seeds. A file that is damaged, or was made with other
    weights, counts as missing.

    A cell that fails is reported in a warning at the end and in `error`, and has no values; the others are not
    affected.

    Args:
        cells: what to run.
        folder: keeps the results; `sweep.nc` in it is the dataset that is returned.
        scheduler: address of a `dask.distributed` scheduler; its workers run the cells (see `analysis.cluster`) and
            this process writes. None runs them here.
        progress: show a bar.

    Returns:
        See `tidy`.

    Raises:
        ValueError: no cells.
        ConnectionError: no scheduler or no workers there, or it went away; finished results are kept.
    """
    if not cells:
        raise ValueError("sweep: there are no cells to run")
    cells = list(dict.fromkeys(cells))
    results = Results(folder)
    jobs = [(one.images, one.setting) for cell in cells for one in (cell.reference, cell)]
    failures = run_all(jobs, results, scheduler=scheduler, progress=progress)
    dataset = tidy(cells, results, failures)
    write_netcdf(dataset, results.folder / "sweep.nc")
    if failures:
        lines = "\n".join(
            f"  {setting.text}, {images.model}, seed {images.seeds[0]}: {error}"
            for (images, setting), error in failures.items()
        )
        warnings.warn(
            f"{len(failures)} runs of the sweep failed and will be tried again by the same command:\n{lines}",
            RuntimeWarning,
            stacklevel=2,
        )
    return dataset
