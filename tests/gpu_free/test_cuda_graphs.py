"""Models whose calls overwrite what the last one computed."""

from __future__ import annotations

import pytest
import torch

import tapstudy
from tests.instrument.tiny_models import make


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
@pytest.mark.parametrize(
    ("how", "other"), [("wrapper", "max-autotune-no-cudagraphs"), ("in place", None), ("blocks", None)]
)
def test_cuda_graphs_are_refused(gpus, how, other):
    """Before anything runs, and no other mode is; nothing is compiled here."""
    tiny = make("Flux")
    with gpus() as trace:
        model = trace.on(tiny.model)
        for mode in (other, "reduce-overhead"):
            target = model
            if how == "wrapper":
                target = torch.compile(model, mode=mode)
            elif how == "in place":
                model.compile(mode=mode)
            else:
                model.compile_repeated_blocks(mode=mode)
            if mode == "reduce-overhead":
                with pytest.raises(RuntimeError, match=r"CUDA graphs .*no-cudagraphs"):
                    tapstudy.apply_tap(target)
            else:
                tapstudy.apply_tap(target).remove()
            assert not any("forward" in vars(module) for module in model.modules())
