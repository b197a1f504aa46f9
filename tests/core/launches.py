"""Count what a skip step of TAP asks of an accelerator: on the meta device, which knows shapes and no values."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tapstudy.core import products
from tapstudy.core.products import anchor_products, scores_from_products, step_products
from tapstudy.core.scoring import assemble, choose, tap_step
from tapstudy.core.weights import extrapolation_row

META = torch.device("meta")
NO_LAUNCH = {"empty", "new_empty", "detach", "view", "_unsafe_view", "unsqueeze", "expand", "transpose", "t", "select"}
NO_LAUNCH |= {"slice", "permute", "diagonal", "alias", "split", "squeeze", "unbind", "as_strided", "squeeze_"}


class Size(NamedTuple):
    """What is scored: tokens, channels, predictors, dtype of probes, and dtype of residuals."""

    tokens: int
    width: int = 3072
    predictors: int = 15
    probe: torch.dtype = torch.bfloat16
    residual: torch.dtype = torch.float32


FLUX, HUNYUAN = Size(4096), Size(118_800)
SIZES = {"FLUX.1-dev, 1024 x 1024": FLUX, "HunyuanVideo, 129 frames of 720p": HUNYUAN}
BANDWIDTHS = {"H100": 3.35e12, "RTX 4090": 1.01e12}  # bytes per second of their memory, by the vendor


@dataclass
class Work(TorchDispatchMode):
    """Counts operations of the meta device, and the bytes that they read and write."""

    launches: Counter[str] = field(default_factory=Counter)
    copies: int = 0
    moved: int = 0
    wide: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [value for value in tree_leaves(args) if isinstance(value, Tensor)]
        made = [value for value in tree_leaves(result) if isinstance(value, Tensor)]
        devices = {tensor.device for tensor in (*read, *made)}
        if META in devices and name not in NO_LAUNCH:
            self.launches[name] += 1
            self.copies += len(devices) > 1
            size = sum(map(touched, (*read[name == "copy_" :], *made)))  # whose target is not read
            self.moved += size
            self.wide += size * any(tensor.dtype == torch.float64 for tensor in (*read, *made))
        return result


def touched(tensor: Tensor) -> int:
    """Count bytes; what a stride of 0 repeats is there once."""
    shape = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return torch.Size(shape).numel() * tensor.element_size()


class Anchors:
    def __init__(self, size: Size, count: int = 3, device: torch.device = META) -> None:
        shape = (1, size.tokens, size.width)
        self.probes = [torch.randn(shape, dtype=size.probe, device=device) for _ in range(count)]
        self.residuals = [torch.randn(shape, dtype=size.residual, device=device) for _ in range(count)]


def weights_of(size: Size) -> Tensor:
    spacing = 5 / (size.predictors // 3)
    shifts = [spacing * index for index in range(size.predictors // 3)]
    rows = [extrapolation_row((18, 10, 2), order, 5 - shift) for order in (0, 1, 2) for shift in shifts]
    return torch.tensor(rows, dtype=torch.float64)


def skip_step(size: Size, **options) -> Work:
    """Count a skip step other than the first one with the same weights."""
    anchors, weights = Anchors(size), weights_of(size)
    tap_step(anchors.probes, anchors.probes[0], anchors, weights, **options)
    with Work() as work:
        tap_step(anchors.probes, anchors.probes[0], anchors, weights, **options)
    return work


def skip_step_in_float64(size: Size) -> Work:
    """Count a skip step as processors take it, in chunks of a size for accelerators."""
    anchors, weights = Anchors(size), weights_of(size)
    actual, known = anchors.probes[0], anchor_products(anchors.probes)
    with Work() as work, patch.object(products, "CHUNK_BYTES", 384 << 20):
        scores = scores_from_products(step_products(anchors.probes, actual, known), weights.to(META))
        choice = choose(scores.T.unflatten(0, actual.shape[:-1]))
        assemble(anchors.residuals, weights, choice, fused=False)
    return work


def timed(size: Size, fused: bool, repeats: int = 50) -> float:
    """Time a skip step on the GPU at hand, in seconds: the median of some, by events in its stream."""
    anchors, weights = Anchors(size, device=torch.device("cuda")), weights_of(size)
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        tap_step(anchors.probes, anchors.probes[0], anchors, weights, fused=fused)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return median(times)


def unavoidable(size: Size, count: int = 3) -> int:
    """Count the bytes of J + 1 probes, J residuals and a float32 prediction, each touched once."""
    values = size.tokens * size.width
    return values * ((count + 1) * size.probe.itemsize + count * size.residual.itemsize + 4)


if __name__ == "__main__":
    for name, size in SIZES.items():
        print(f"{name}; unavoidable: {unavoidable(size) / 1e9:.3f} GB")
        for label, work in (
            ("float64", skip_step_in_float64(size)),
            ("PyTorch", skip_step(size, fused=False)),
            ("fused", skip_step(size, fused=True)),
        ):
            times = ", ".join(f"{device} {1e3 * work.moved / rate:.3f} ms" for device, rate in BANDWIDTHS.items())
            share = work.moved / unavoidable(size)
            print(f"  {label}: {work.launches.total()} launches, {work.moved / 1e9:.3f} GB ({share:.2f} x), {times}")
        if torch.cuda.is_available():
            times = [
                f"{label} {1e3 * timed(size, fused):.3f} ms" for label, fused in (("PyTorch", False), ("fused", True))
            ]
            print(f"  measured on {torch.cuda.get_device_name()}: {', '.join(times)}")
