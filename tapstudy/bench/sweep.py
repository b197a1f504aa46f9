"""Many cells, here or on a cluster; what is done is kept, and a killed sweep goes on where it stopped."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import xarray as xr
from tqdm.auto import tqdm

from tapstudy.analysis.cluster import scheduler as dask_scheduler
from tapstudy.bench.cells import Cell
from tapstudy.bench.measure import measure, measure_on_worker, weights_fingerprint
from tapstudy.bench.sweep_table import tidy
from tapstudy.netcdf import write_netcdf

Outcome = tuple[Cell, xr.Dataset | Exception]


def sweep(
    cells: Sequence[Cell], folder: str | Path, *, scheduler: str | None = None, progress: bool = True
) -> xr.Dataset:
    """Run the cells, and the reference of each once, and put the results into one dataset.

    What is computed at a time is one setting with all labels of one seed. Its images go to a file of their own in
    `folder/cells`, whole or not at all. The same call again computes what is missing only: after a kill, with more
    cells, or with more seeds. A file that is damaged, or was made with other weights, counts as missing.

    A cell that fails is reported in a warning at the end and in `error`, and has no values; the others are not
    affected.

    Args:
        cells: what to run.
        folder: keeps the results; `sweep.nc` in it is the dataset that is returned.
        scheduler: address of a `dask.distributed` scheduler; its workers run the cells (see `measure_on_worker`) and
            this process writes. The work of a worker that dies is done again by another; a cell that kills
            `distributed.scheduler.allowed-failures` (3) workers and one more has failed. None runs them here.
        progress: show a bar.

    Returns:
        See `tidy`.

    Raises:
        ValueError: no cells.
        ConnectionError: no scheduler or no workers there, or it went away; finished results are kept.
    """
    if not cells:
        raise ValueError("sweep: there are no cells to run")
    store = Path(folder) / "cells"
    cells = list(dict.fromkeys(cells))
    parts = list(dict.fromkeys(part for cell in cells for part in (*cell.reference.parts, *cell.parts)))
    say = tqdm.write if progress else lambda _: None
    missing = [part for part in parts if read_result(store, part, say=say) is None]
    failures: dict[Cell, str] = {}
    outcomes = _here(missing) if scheduler is None else _on_cluster(missing, scheduler)
    with tqdm(total=len(parts), initial=len(parts) - len(missing), desc="sweep", disable=not progress) as bar:
        for part, outcome in outcomes if missing else ():
            if isinstance(outcome, xr.Dataset) and outcome.attrs["weights"] != weights_fingerprint(part.model):
                outcome = ValueError(f"a worker has other weights of {part.model} than this process")
            if isinstance(outcome, Exception):
                failures[part] = f"{type(outcome).__name__}: {outcome}"
                bar.set_postfix(failed=len(failures))
            else:
                outcome.attrs["checksum"] = _checksum(outcome)
                write_netcdf(outcome, result_path(store, part))
            bar.update()

    @lru_cache(maxsize=64)  # references are read for every cell
    def read(part: Cell) -> xr.Dataset | None:
        return None if part in failures else read_result(store, part)

    dataset = tidy(cells, read, failures)
    write_netcdf(dataset, Path(folder) / "sweep.nc")
    if failures:
        lines = "\n".join(f"  {part}: {error}" for part, error in failures.items())
        warnings.warn(
            f"{len(failures)} of {len(parts)} parts of the sweep failed and will be tried again by the same command:\n"
            f"{lines}",
            RuntimeWarning,
            stacklevel=2,
        )
    return dataset


def result_path(store: Path, part: Cell) -> Path:
    return store / f"{part.name}.nc"


def read_result(store: Path, part: Cell, *, say: Callable[[str], object] = lambda _: None) -> xr.Dataset | None:
    """The stored result of a part, see `measure`; None if there is none that is whole and of the present weights."""
    path = result_path(store, part)
    if not path.exists():
        return None
    try:
        with xr.open_dataset(path, engine="netcdf4") as file:
            found = file.load()
        attrs = found.attrs
        if json.loads(attrs["cell"]) != part.to_dict() or attrs["checksum"] != _checksum(found):
            reason = "is damaged"
        elif attrs["weights"] != weights_fingerprint(part.model):
            reason = "was made with other weights"
        else:
            return found
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        reason = f"cannot be read ({type(error).__name__}: {error})"
    say(f"{path} {reason}: computing it again")
    return None


def _checksum(result: xr.Dataset) -> int:
    return zlib.crc32(result["image"].values.tobytes())


def _here(parts: Iterable[Cell]) -> Iterator[Outcome]:
    for part in parts:
        try:
            yield part, measure(part)
        except Exception as error:
            yield part, error


def _on_cluster(parts: Iterable[Cell], address: str) -> Iterator[Outcome]:
    with dask_scheduler(address) as client:
        from distributed import as_completed

        assert client is not None
        futures = {client.submit(measure_on_worker, part.to_dict(), pure=False): part for part in parts}
        for future in as_completed(futures):
            if future.status == "cancelled":
                raise ConnectionError(
                    f"the dask scheduler at {address} went away; what is finished is kept, and the same command goes on"
                )
            part, error = futures.pop(future), future.exception()
            yield part, error or future.result()
            future.release()
