"""Run jobs on the workers of a dask scheduler."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from tapstudy.analysis.cluster import scheduler as dask_scheduler

Job = TypeVar("Job")
Result = TypeVar("Result")


def on_cluster(
    run: Callable[[Job], Result], jobs: Sequence[Job], address: str
) -> Iterator[tuple[Job, Result | BaseException]]:
    """Run `run` of every job on all workers; this process gets the results as they come.

    The work of a worker that dies is done again by another; a job that kills `distributed.scheduler.allowed-failures`
    (3) workers and one more has failed.

    Raises:
        ConnectionError: no scheduler or no workers there, or it went away.
    """
    with dask_scheduler(address) as client:
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
    from distributed import get_worker

    before = torch.get_num_threads()
    torch.set_num_threads(get_worker().state.nthreads)
    try:
        return run(job)
    finally:
        torch.set_num_threads(before)
