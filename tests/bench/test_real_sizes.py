"""What TAP costs on released models, against published and hand-computed numbers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import diffusers
import pytest
import torch

import tapstudy
from tapstudy.bench.speed.example_inputs import example_inputs
from tapstudy.bench.speed.real_sizes import REAL_SIZES, RealSizeCosts, history_bytes, real_size_costs
from tapstudy.instrument.adapters import ADAPTERS
from tests.instrument.tiny_models import VARIANTS, make
from tests.table import each_row

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
costs = cache(real_size_costs)

# in units of 1e9: of the first thirteen classes as released, of the others as computed from a configuration that was
# written from memory, a guard against changes; diffusers gives every block of DiT-XL/2 (0.675) embedders of its own
PARAMETERS = {
    "AllegroTransformer3DModel": 2.77,
    "AnyFlowTransformer3DModel": 14.3,
    "AuraFlowTransformer2DModel": 6.83,
    "BriaFiboTransformer2DModel": 8.29,
    "BriaTransformer2DModel": 11.9,
    "ChromaTransformer2DModel": 8.90,
    "ChronoEditTransformer3DModel": 14.3,
    "CogView3PlusTransformer2DModel": 2.85,
    "CogView4Transformer2DModel": 6.37,
    "ConsisIDTransformer3DModel": 6.16,
    "CosmosTransformer3DModel": 7.24,
    "EasyAnimateTransformer3DModel": 11.8,
    "GlmImageTransformer2DModel": 6.93,
    "HeliosTransformer3DModel": 14.3,
    "HiDreamImageTransformer2DModel": 17.1,
    "HunyuanDiT2DModel": 1.50,
    "HunyuanVideo15Transformer3DModel": 8.33,
    "HunyuanVideoFramepackTransformer3DModel": 12.9,
    "JoyImageEditTransformer3DModel": 16.3,
    "Kandinsky5Transformer3DModel": 2.01,
    "Krea2Transformer2DModel": 12.8,
    "LongCatImageTransformer2DModel": 6.27,
    "LuminaNextDiT2DModel": 1.75,
    "MochiTransformer3DModel": 10.0,
    "MotifVideoTransformer3DModel": 1.89,
    "NucleusMoEImageTransformer2DModel": 22.7,
    "OvisImageTransformer2DModel": 7.37,
    "PRXTransformer2DModel": 1.17,
    "SanaVideoTransformer3DModel": 1.91,
    "SkyReelsV2Transformer3DModel": 14.3,
    "WanAnimateTransformer3DModel": 15.2,
    "WanVACETransformer3DModel": 17.3,
    "CogVideoXTransformer3DModel": 5.57,
    "DiTTransformer2DModel": 0.75,
    "Flux2Transformer2DModel": 32.2,
    "FluxTransformer2DModel": 11.9,
    "HunyuanVideoTransformer3DModel": 12.8,
    "LTXVideoTransformer3DModel": 1.92,
    "Lumina2Transformer2DModel": 2.61,
    "PixArtTransformer2DModel": 0.611,
    "QwenImageTransformer2DModel": 20.4,
    "SD3Transformer2DModel": 2.03,
    "SanaTransformer2DModel": 1.60,
    "WanTransformer3DModel": 14.3,
    "ZImageTransformer2DModel": 6.15,
}


def test_every_adapter_has_a_real_size():
    assert REAL_SIZES.keys() == ADAPTERS.keys() == PARAMETERS.keys()


INSTALLED = [name for name in REAL_SIZES if hasattr(diffusers, name)]
# the share of a full pass that a skip step has at most, where something large makes the tokens or the modulation
LARGE = {
    "Lumina2Transformer2DModel": 0.067,  # two refiners of the noisy image; text is left out
    "ZImageTransformer2DModel": 0.067,
    "GlmImageTransformer2DModel": 0.005,  # a projection of the prior's tokens, which is added to the image
    "ChromaTransformer2DModel": 0.003,  # a network that makes all modulation of all blocks
    "HunyuanDiT2DModel": 0.0004,
    "NucleusMoEImageTransformer2DModel": 0.0003,
    "PRXTransformer2DModel": 0.0004,
}
OTHER_CHANNELS = {
    "ConsisIDTransformer3DModel", "DiTTransformer2DModel", "PixArtTransformer2DModel", "HunyuanDiT2DModel",
    "LuminaNextDiT2DModel", "HunyuanVideo15Transformer3DModel", "MotifVideoTransformer3DModel",
    "WanAnimateTransformer3DModel",
}  # fmt: skip


# one of every kind of model; the others take a minute of counting
USUAL = ("DiTTransformer2DModel", "FluxTransformer2DModel", "SD3Transformer2DModel", "Lumina2Transformer2DModel",
         "WanTransformer3DModel")  # fmt: skip


@pytest.mark.parametrize("name", USUAL)
def test_skip_step_costs_next_to_nothing(name):
    check_costs(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["2D", "3D"])
def test_the_page_has_the_costs_of_every_class(kind):
    """All classes whose number is another one are named at once."""
    wrong = {}
    for name in INSTALLED:
        if kind in name and name not in USUAL:
            try:
                check_costs(name)
            except (AssertionError, ValueError) as error:
                wrong[name] = str(error)
    assert not wrong, "\n\n".join(f"{name}: {told}" for name, told in wrong.items())


def check_costs(name):
    """As the page of models says."""
    found: RealSizeCosts = costs(name)
    assert found.parameters / 1e9 == pytest.approx(PARAMETERS[name], rel=0.01)
    assert 0 < found.share < LARGE.get(name, 0.0003)
    grid = REAL_SIZES[name].grid
    assert found.tokens == grid[0] * grid[1] * grid[2]
    # what the policy holds after three full steps is what the formula says
    assert found.history == history_bytes(found.tokens, found.width)
    if found.skip_latent is not None:
        assert found.skip_latent < found.skip
    assert (found.skip_latent is None) == (name in OTHER_CHANNELS)
    (row,) = [line for line in PAGE.read_text().splitlines() if line.startswith(f"| `{name}` |")]
    assert found.label in row
    assert f"{100 * found.share:.3f} %" in row
    assert f"{found.history / 1e9:.3f}" in row


def test_flux():
    found = costs("FluxTransformer2DModel")
    assert found.full == pytest.approx(74.4e12, rel=0.03)
    assert found.share < 0.0005
    # 3 anchors x 4096 tokens x 3072 channels x (2 + 4) bytes
    assert found.history == 226_492_416 <= 0.25e9
    # with residuals in bf16 0.151 GB, which is 0.141 GiB
    assert found.history_bfloat16 == 150_994_944 <= 0.15 * 2**30
    assert "0.226 GB per context" in str(found)


def test_dit_against_its_paper():
    """118.6 G multiply-adds."""
    assert costs("DiTTransformer2DModel").full == pytest.approx(2 * 118.6e9, rel=0.01)


@pytest.mark.parametrize(("name", "residual"), [("Flux", torch.bfloat16), ("Lumina2", torch.float32)])
def test_memory_formula_on_a_model_that_runs(name, residual):
    tiny = make(name)
    tiny.model.to(torch.bfloat16)
    inputs = {
        key: value.bfloat16() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in tiny.inputs.items()
    }
    with torch.no_grad(), tapstudy.tap(tiny.model, history_dtype=residual) as handle:
        for step in range(5):
            tiny.model(**inputs | {"timestep": inputs["timestep"] * (1 - step / 10)})
    (context,) = handle.summary().contexts
    width = {"Flux": 32, "Lumina2": 24}[name]
    samples = 2
    assert context.mask == "FFF.."
    assert context.cache_bytes == samples * history_bytes(tiny.tokens, width, residual=residual)


@each_row("name", VARIANTS)
def test_example_inputs_pass_the_check(name):
    model = make(name).model
    report = tapstudy.check(model, example_inputs(model))
    assert report.ok, report


def test_unknown_class():
    with pytest.raises(ValueError, match="no real size for 'UNet2DConditionModel'; known are Allegro"):
        real_size_costs("UNet2DConditionModel")
    with pytest.raises(TypeError, match="no example inputs for Linear"):
        example_inputs(torch.nn.Linear(1, 1))
