"""Recordings larger than memory: the peak of a process that rescores one."""

import os
import subprocess
import sys
from pathlib import Path

import dask.array as da
import pytest
import xarray as xr

from tests.analysis.trajectories import make_features

STEPS, TOKENS, CHANNELS = 50, 256, 384
GB = 1e9

# VmHWM and not getrusage: that one carries over the peak of the process that started this one.
CHILD = """
import sys, xarray as xr
from tapstudy.analysis.ablation import ablate, grid
from tapstudy.analysis.rescoring import rescore

def peak():
    (line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024

recording = xr.open_zarr(sys.argv[1])
if sys.argv[2] == "rescore":
    found = rescore(recording, selected_only=True)["regret"].mean(["context", "step", "token"])
else:
    found = ablate(recording, grid(interval=(6, 8)))["regret"].sel(setting="interval=8")
found = found.values  # computed here, and only then is the peak that of computing
print(peak(), recording.nbytes, *found)
"""


def write_copies(path: Path, samples: int) -> None:
    """A store of so many samples that are all the same; on disk they share their files."""
    one = make_features(samples=1, steps=STEPS, tokens=TOKENS, channels=CHANNELS)[["probe", "residual"]]
    one = one.drop_vars(list(one.coords))
    chunks = (1, 1, 20, TOKENS, CHANNELS)  # 8 MB, as recordings have them
    empty = xr.Dataset(
        {name: (array.dims, da.zeros((samples, *array.shape[1:]), chunks=chunks, dtype=array.dtype))
         for name, array in one.data_vars.items()}
    )  # fmt: skip
    empty.to_zarr(path, compute=False, consolidated=False)
    one.chunk(dict(zip(one["probe"].dims, chunks, strict=True))).to_zarr(
        path, region={"sample": slice(0, 1)}, consolidated=False
    )
    for name in one:
        for chunk in (path / name / "c" / "0").rglob("*"):
            for sample in range(1, samples):
                copy = path / name / "c" / str(sample) / chunk.relative_to(path / name / "c" / "0")
                if chunk.is_dir():
                    copy.mkdir(parents=True, exist_ok=True)
                else:
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    os.link(chunk, copy)


def rescored_elsewhere(path, how):
    """Peak memory in bytes, bytes of the recording, and what every sample came to."""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, str(path), how], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    peak, size, *found = map(float, ran.stdout.split())
    return peak, size, found


@pytest.mark.slow  # half a minute each; that nothing is computed early and every chunk is read once is tested elsewhere
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize(
    ("samples", "limit", "how"),
    [pytest.param(13, 1.0, "rescore", id="1 GB"), pytest.param(26, 1.5, "ablate", id="2 GB, ablation")],
)
def test_memory_does_not_grow_with_the_recording(tmp_path, samples, limit, how):
    write_copies(tmp_path / "run", samples)
    peak, size, found = rescored_elsewhere(tmp_path / "run", how)
    assert size > samples / 13 * GB
    assert peak < limit * GB, f"{peak / GB:.2f} GB for a recording of {size / GB:.1f} GB"
    assert len(found) == samples
    assert found[0] > 0
    assert set(found) == {found[0]}
