"""Killed at any moment, a recording keeps what is finished; memory stays flat; one process at a time.

The processes are forked from a server that has imported everything once.
"""

import multiprocessing
import random
import time

import pytest
import xarray as xr

import tapstudy
from tests.recording.runs import SIX, peak_memory, record_six


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.recording.runs"])
    return context


def finish(process):
    process.join(600)
    assert process.exitcode == 0


@pytest.mark.slow
def test_killed_five_times_and_resumed(processes, tmp_path):
    warm = processes.Process(target=time.sleep, args=(0,))  # the first waits for the imports
    warm.start()
    finish(warm)
    started = time.perf_counter()
    whole = processes.Process(target=record_six, args=(tmp_path / "whole",))
    whole.start()
    finish(whole)
    duration = time.perf_counter() - started

    path, draw, finished = tmp_path / "killed", random.Random(0), 0
    for _ in range(5):
        process = processes.Process(target=record_six, args=(path,))
        process.start()
        waited = time.perf_counter()
        while not path.exists() and time.perf_counter() - waited < 600:
            time.sleep(0.001)
        process.join(draw.uniform(0, duration / 4))
        process.kill()
        process.join()
        try:
            now = tapstudy.open_recording(path).load().sizes["sample"]
        except tapstudy.RecordingError:
            now = 0  # nothing finished yet, or the next line fails
        assert now >= finished
        finished = now
    last = processes.Process(target=record_six, args=(path,))
    last.start()
    finish(last)
    resumed = tapstudy.open_recording(path).load()
    xr.testing.assert_identical(resumed, tapstudy.open_recording(tmp_path / "whole").load())
    assert resumed.sizes["sample"] == len(SIX)


@pytest.mark.slow
def test_memory_does_not_grow_with_samples(processes, tmp_path):
    ours, theirs = processes.Pipe()
    process = processes.Process(target=peak_memory, args=(tmp_path, (10, 200), theirs))
    process.start()
    theirs.close()  # else a process that dies leaves this one waiting
    few = ours.recv()
    many = ours.recv()
    finish(process)
    recorded = tapstudy.open_recording(tmp_path / "200", verify=False).nbytes / 1024
    assert recorded > 0.05 * few  # else the bound would say nothing
    assert many - few < min(0.1 * few, 0.5 * recorded), (few, many, recorded)


def test_a_second_process_is_refused(processes, tiny_pipe, tmp_path):
    """It asks while the first records, and the first goes on."""
    path, codes = tmp_path / "run", []

    def meanwhile(_module, _args):
        if len(codes) == 0:
            second = processes.Process(target=expect_refusal, args=(path,))
            second.start()
            second.join(600)
            codes.append(second.exitcode)

    handle = tiny_pipe.transformer.register_forward_pre_hook(meanwhile)
    run = tapstudy.record(tiny_pipe, SIX[:2], path, fields=("choice",), progress=False)
    handle.remove()
    assert codes == [0]
    assert run.sizes["sample"] == 2


def expect_refusal(path):
    with pytest.raises(tapstudy.RecordingError, match="another process is recording into"):
        record_six(path)
