"""Fake GPUs for the tests, which are left out where the device guard cannot be built."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.gpu_free.fake_cuda import NoCompiler, Trace, fake_gpus


@pytest.fixture(scope="session")
def gpus(tmp_path_factory):
    """Return what opens two fake GPUs: `with gpus() as trace`."""
    folder = str(tmp_path_factory.mktemp("guard"))

    @contextmanager
    def opened(answer: Callable[[Tensor], float] | None = None) -> Iterator[Trace]:
        with fake_gpus(folder, answer) as trace, torch.no_grad():
            yield trace

    try:
        with opened():
            pass
    except NoCompiler as error:
        pytest.skip(str(error))
    return opened
