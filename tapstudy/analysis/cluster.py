"""Where dask computes: threads of this process, or the workers of a cluster; and jobs on these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import dask

from tapstudy.extras import need

if TYPE_CHECKING:
    from distributed import Client

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def scheduler(address: str | None = None, *, timeout: float = 30) -> Iterator[Client | None]:
    """Have dask collections compute there, inside the block.

    Args:
        address: of a `dask.distributed` scheduler, as in "tcp://host:8786"; None means threads of this process, also
            when a client is active outside the block. Workers must be able to import tapstudy and to open the
            recordings and output files at the same absolute paths.
        timeout: seconds to wait for the scheduler and its first worker.

    Yields:
        The client, or None.

    Raises:
        ConnectionError: no scheduler answers there, or it has no workers.
        ModuleNotFoundError: dask's distributed scheduler is not installed.

    >>> with scheduler("tcp://localhost:8786"):  # doctest: +SKIP
    ...     proxy_correlation(recording).to_netcdf("/shared/correlation.nc")
    """
    if address is None:
        with dask.config.set(scheduler="threads"):
            yield None
        return
    need("a cluster", "distributed")
    from distributed import Client

    try:
        # as the default, it would stay dask's scheduler even when it does not connect
        client = Client(address, timeout=timeout, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"no dask scheduler answers at {address!r} ({error}): start one with `dask scheduler`, and workers with "
            f"`dask worker {address}`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise ConnectionError(
                f"the dask scheduler at {address!r} has no workers: start some with `dask worker {address}`"
            ) from error
        with client.as_current(), dask.config.set(scheduler=client):
            yield client


def on_cluster(
    run: Callable[[Job], Result], jobs: Sequence[Job], address: str
) -> Iterator[tuple[Job, Result | BaseException]]:
    """Run `run` of every job on all workers; this process gets the results as they come.

    The work of a worker that dies is done again by another; a job that kills `distributed.scheduler.allowed-failures`
    (3) workers and one more has failed.

    Raises:
        ConnectionError: no scheduler or no workers there, or it went away.
    """
    with scheduler(address) as client:
        from distributed import as_completed

        assert client is not None
        futures = {client.submit(run_on_worker, run, job, pure=False): job for job in jobs}
        for future in as_completed(futures):
            if future.status == "cancelled":
                raise ConnectionError(
                    f"the dask scheduler at {address} went away; what is finished is kept, and the same command resumes"
                )
            job, error = futures.pop(future), future.exception()
            yield job, error or future.result()
            future.release()


def run_on_worker(run: Callable[[Job], Result], job: Job) -> Result:
    """Run a job as a task of a worker of `dask.distributed`.

    A worker process loads a model once and runs one job at a time, with as many torch threads as dask gave the worker.
    So one thread to a worker is best: `dask worker ADDRESS --nworkers 8 --nthreads 1`.
    """
    import torch
    from distributed import get_worker

    before = torch.get_num_threads()
    torch.set_num_threads(get_worker().state.nthreads)
    try:
        return run(job)
    finally:
        torch.set_num_threads(before)
