"""Recordings of the tiny pipeline, for tests and for the processes that tests kill."""

import resource

import torch

import tapstudy
from tests.conftest import make_tiny_pipe

STEPS = 8
CONFIG = tapstudy.TAPConfig(interval=4, warmup_steps=2)
ALL = ("proxy_loss", "true_error", "choice", "image", "probe", "residual", "latent", "latent_residual")


def calls_of(*batches, steps=STEPS, **more):
    """One call per batch of (label, seed) pairs."""
    return [
        {"class_labels": [label for label, _ in batch], "seed": [seed for _, seed in batch],
         "num_inference_steps": steps, **more}
        for batch in batches
    ]  # fmt: skip


SIX = calls_of(*([(i, i)] for i in range(6)))


def record_six(path):
    """What the killed processes run."""
    torch.set_num_threads(1)
    tapstudy.record(make_tiny_pipe(), SIX, path, fields=ALL, depths=(0, 2), config=CONFIG, progress=False)


def peak_memory(folder, counts, peaks):
    """Peak memory in KiB after recording so many samples, ten at a time."""
    torch.set_num_threads(1)
    pipe = make_tiny_pipe()
    for count in counts:
        calls = calls_of(*([(i % 10, i + j) for i in range(10)] for j in range(0, count, 10)))
        tapstudy.record(pipe, calls, f"{folder}/{count}", fields=ALL, depths=(0, 1, 2), config=CONFIG, progress=False)
        peaks.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
