import os
import platform
import subprocess
import sys

import pytest

TOUCH = """
import resource
import sys
import numpy as np
from tapstudy.commands.allocator import keep_large_buffers
kept = keep_large_buffers() if sys.argv[1] == "keep" else None
def touch():
    for _ in range(20):
        np.ones(1 << 22)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
touch()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep, **more):
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | more
    told = subprocess.run([sys.executable, "-c", TOUCH, keep], capture_output=True, text=True, check=True, env=env)
    kept, count = told.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_large_buffers_are_kept():
    """20 buffers of 32 MB, in pages of 4 kB or in huge ones of 2 MB."""
    _, without = faults("no")
    kept, count = faults("keep")
    assert kept == "True"
    assert count < without / 5
    assert without >= 20 * 16


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_options_from_outside_are_left_alone():
    assert faults("keep", MALLOC_ARENA_MAX="2")[0] == "False"
