"""Where dask computes: threads of this process, or the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import dask

from tapstudy.extras import need

if TYPE_CHECKING:
    from distributed import Client


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
