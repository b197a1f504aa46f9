"""The Triton kernels: interpreted on the CPU, compiled for GPUs that need not be there, chosen where they should be."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tapstudy.core import fused
from tapstudy.core.coordinates import coefficients_of, coordinate_scores
from tapstudy.core.scoring import assemble, tap_step
from tapstudy.policies.tap import TAPPolicy
from tests.core.launches import FLUX, Anchors, weights_of
from tests.core.test_coordinates import check_choices, hard, reference
from tests.table import each_row

triton = pytest.importorskip("triton")
ROOT = Path(__file__).parents[2]


def test_interpreted():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/core/interpreted_kernels.py"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        command, cwd=ROOT, env=environment | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]


@each_row(("distance", "count"), [("cosine", 3), ("l2", 4), ("l1", 1)])
def test_compiled_for_an_h100_without_one(distance, count, tmp_path, monkeypatch):
    """In machine code, without float64."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from tapstudy.core import kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    anchors = ("A0", "A1", "A2", "A3")
    pointers = dict.fromkeys(anchors, "*bf16")
    for kernel, types, constants in (
        (
            kernels._rank,
            {"F": "*bf16", **pointers, "coefficients": "*fp32", "scores": "*fp32", "choice": "*i64"},
            {"J": count, "DISTANCE": distance, "WIDTH": 4096, "COUNT": 16},
        ),
        (
            kernels._assemble,
            {**pointers, "weights": "*fp32", "choice": "*i64", "result": "*fp32"},
            {"J": count, "WIDTH": 1024},
        ),
    ):
        signature = {name: types.get(name, "constexpr" if name in constants else "i32") for name in kernel.arg_names}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        assert len(compiled.asm["cubin"]) > 0
        assert ".f64" not in compiled.asm["ptx"]


def test_chosen_by_itself_on_cuda_alone():
    def features(device):
        return SimpleNamespace(device=SimpleNamespace(type=device))

    assert fused._wanted(None, features("cuda"))
    assert not any(fused._wanted(None, features(device)) for device in ("cpu", "mps", "xpu", "meta"))
    assert not fused._wanted(False, features("cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@each_row(("distance", "count", "width"), [("cosine", 3, 3072), ("l2", 4, 1152), ("l1", 2, 5120), ("cosine", 1, 8192)])
def test_on_a_gpu(distance, count, width):
    anchors, actual = hard("near", 0, dtype=torch.bfloat16, tokens=300, width=width)
    weights = torch.randn(20, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    anchors = [*anchors, anchors[0].flip(1)][:count]
    history = SimpleNamespace(residuals=[anchor.cuda() for anchor in anchors])
    found, choice, scores = tap_step(history.residuals, actual.cuda(), history, weights, distance=distance, fused=True)
    expected = coordinate_scores(anchors, actual, coefficients_of(distance)(weights), distance=distance)
    torch.testing.assert_close(scores[0].T.cpu(), expected, rtol=1e-4, atol=1e-5)
    check_choices(choice[0].cpu(), reference(anchors, actual, weights, distance))
    torch.testing.assert_close(found.cpu(), assemble(anchors, weights, choice.cpu()), rtol=1e-5, atol=1e-5)


def test_a_failure_ends_it_with_a_warning(monkeypatch):
    """By itself; what was asked for fails aloud."""
    anchors, weights = Anchors(FLUX), weights_of(FLUX)

    def broken(kernels):
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(fused, "_failed", False)
    with pytest.warns(RuntimeWarning, match=r"the fused kernels failed \(no compiler\), going on without them"):
        assert fused._run(None, broken) is None
    assert fused._failed
    with pytest.raises(RuntimeError, match="no compiler"):
        fused._run(True, broken)
    tap_step(anchors.probes, anchors.probes[0], anchors, weights)


def test_what_is_refused(monkeypatch):
    probe = torch.ones(1, 2, 3)
    weights = torch.ones(1, 1, dtype=torch.float64)
    with pytest.raises(ValueError, match="TRITON_INTERPRET=1"):
        tap_step([probe], probe, Anchors(FLUX), weights, fused=True)
    with pytest.raises(ValueError, match="leave fused out"):
        TAPPolicy(compile=True, fused=True)
    monkeypatch.setattr("tapstudy.extras.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"needs triton: pip install 'tapstudy\[fast\]'"):
        tap_step([probe], probe, Anchors(FLUX), weights, fused=True)
