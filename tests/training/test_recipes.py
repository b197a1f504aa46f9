from dataclasses import replace

import pytest
import torch
from diffusers import DiTTransformer2DModel

from tapstudy.models.data import DATA_SETS, LabelledImages
from tapstudy.models.embedded import EMBEDDED, MADE_BY, data_folder
from tapstudy_training.checkpoint import smooth_sigma_of
from tapstudy_training.recipes import CLASSIFIERS, MODELS
from tapstudy_training.speed import Speed, known_peak, training_flops
from tapstudy_training.tasks import LabelTask
from tests.table import each_row


def test_every_embedded_model_has_a_recipe():
    own = {name: data_set for name, data_set in EMBEDDED.items() if name not in MADE_BY}
    assert {name: model.data_set for name, model in MODELS.items()} == own


def test_smoothed_models_start_from_rough_ones_or_from_blocks_of_smooth_ones():
    """And the embedded ones have the low-pass of their recipe folded in."""
    for model in MODELS.values():
        folder = data_folder() / "models"
        if model.initial:
            assert model.kept_blocks or model.initial in MADE_BY
            assert smooth_sigma_of(folder / model.initial) == (model.recipe.smooth_sigma if model.kept_blocks else 0)
            assert smooth_sigma_of(folder / model.name) == model.recipe.smooth_sigma > 0
        assert len(model.kept_blocks) in (0, model.transformer["num_layers"])


@each_row("name", MODELS)
def test_models_have_data_and_judge(name):
    model = MODELS[name]
    assert model.name == name
    data = DATA_SETS[model.data_set]
    if data.labelled:
        assert (data.bands, data.size) == (model.transformer["in_channels"], model.transformer["sample_size"])
    else:
        assert (16 * data.bands, data.size) == (model.transformer["in_channels"], model.size)
    assert model.judge == f"{model.data_set}-classifier"
    assert model.data_set in CLASSIFIERS
    assert model.recipe.log_every <= model.recipe.checkpoint_every


def test_size_of_cifar10_dit():
    """29.4 M parameters by the layers' shapes; 60 MB in bf16 is the limit. 256 tokens, a map of 16 x 16."""
    config = MODELS["cifar10-dit"].transformer
    with torch.device("meta"):
        found = sum(p.numel() for p in DiTTransformer2DModel.from_config(dict(config)).parameters())
    w, layers, inside = 384, config["num_layers"], 3 * 2 * 2
    attention, mlp, modulation = 4 * (w * w + w), 2 * 4 * w * w + 5 * w, 6 * (w * w + w)
    embeddings = (256 * w + w) + (w * w + w) + 11 * w
    ends = inside * w + w + 2 * (w * w + w) + w * inside + inside
    assert found == layers * (attention + mlp + modulation + embeddings) + ends
    assert 2 * found < 60e6
    assert (config["sample_size"] // config["patch_size"]) ** 2 == 256


@each_row("name", [name for name, model in MODELS.items() if model.text_encoder is None])
def test_flops_of_training_by_hand(name):
    """Every product of the forward pass, three times: once forward, twice backward, less what has no gradient to pass
    on (the gradients of the image and of the sinusoids of the time)."""
    config = MODELS[name].transformer
    w, bands = config["num_attention_heads"] * 64, config["in_channels"]
    tokens, inside = (config["sample_size"] // 2) ** 2, 4 * bands
    products = tokens * 12 * w * w + 2 * tokens * tokens * w + 6 * w * w + 256 * w + w * w  # one layer
    ends = tokens * inside * w + (256 * w + w * w) + 2 * w * w + tokens * w * inside
    no_gradient = tokens * inside * w + (config["num_layers"] + 1) * 256 * w
    attention_again = 0.5 * 2 * tokens * tokens * w  # a fused backward pass computes the scores anew
    exact = 3 * (config["num_layers"] * products + ends) - no_gradient
    bare = LabelledImages(
        torch.zeros(1, bands, config["sample_size"], config["sample_size"], dtype=torch.uint8), torch.zeros(1).long()
    )
    found = training_flops(LabelTask(config, bare), MODELS[name].recipe) / 2
    assert found in (pytest.approx(exact), pytest.approx(exact + config["num_layers"] * attention_again))


def test_share_of_the_peak():
    speed = Speed(8_000, 30_000_000_000, 960e12)
    assert speed.flops_per_second == 240e12
    assert speed.share == 0.25
    assert str(speed) == "8,000 images/s, 240.00 TFLOP/s (30.0 GFLOPs an image), 25 % of 960 TFLOP/s"
    assert replace(speed, peak=None).share is None
    assert "%" not in str(replace(speed, peak=None))
    assert known_peak("cpu") is None


def test_known_peak(monkeypatch):
    for name, peak in (("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA T4", None)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert known_peak("cuda") == peak
