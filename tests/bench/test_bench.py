import math

import pytest
import torch

from tapstudy.analysis.comparison_table import comparison_table
from tapstudy.bench.compare import compare_images
from tapstudy.bench.conditions import noise_seed
from tapstudy.bench.image_error import psnr, ssim
from tapstudy.bench.image_set import ImageSet, pipe_of, trained_model
from tapstudy.bench.judge import Judge
from tapstudy.instrument.flops import count_flops
from tapstudy.models.classifier import Classifier


def test_psnr_by_hand():
    reference = torch.zeros(2, 1, 4, 4)
    images = torch.stack([torch.full((1, 4, 4), 0.1), torch.zeros(1, 4, 4)])
    found = psnr(images, reference)
    assert found[0].item() == pytest.approx(20, abs=1e-4)
    assert math.isinf(found[1])
    assert psnr(images, reference, data_range=2.0)[0].item() == pytest.approx(20 + 20 * math.log10(2), abs=1e-4)


def test_unrelated_images_score_under_12_db():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(8, 1, 28, 28, generator=generator) for _ in range(2))
    assert (psnr(a, b) < 12).all()
    assert (ssim(a, b) < 0.2).all()
    torch.testing.assert_close(ssim(a, a), torch.ones(8))


def test_flops_by_hand():
    layer = torch.nn.Linear(3, 5)
    assert count_flops(lambda: layer(torch.zeros(7, 3))) == 2 * 7 * 3 * 5
    query, key = torch.zeros(2, 3, 7, 4), torch.zeros(2, 3, 9, 4)  # batch, head, token, channel
    attention = torch.nn.functional.scaled_dot_product_attention
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            assert count_flops(lambda: attention(query, key, key)) == 2 * 3 * 2 * (2 * 7 * 9 * 4)


def test_perceptual_distance_by_hand():
    """0 for equal images, symmetric, and what one layer's maps say when they are scaled to length 1."""
    judge = Judge.of("mnist-dit")
    a, b = torch.rand(2, 3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(judge.perceptual_distance(a, a), torch.zeros(3))
    torch.testing.assert_close(judge.perceptual_distance(a, b), judge.perceptual_distance(b, a))
    found, x, y = [], 2 * a - 1, 2 * b - 1
    with torch.no_grad():
        for stage in judge.classifier.stages:
            x, y = stage(x), stage(y)
            if "MaxPool" not in type(stage).__name__:
                cosine = torch.nn.functional.cosine_similarity(x.double(), y.double(), dim=1)
                found.append((2 - 2 * cosine).mean(dim=(1, 2)))
    torch.testing.assert_close(
        judge.perceptual_distance(a, b).double(), torch.stack(found).mean(dim=0), rtol=1e-3, atol=1e-5
    )
    slightly = judge.perceptual_distance(a, a + 0.01)
    assert (slightly < judge.perceptual_distance(a, b)).all()
    assert (slightly > 0).all()


def test_names_of_untrained_models():
    assert trained_model("mnist-dit") == ("mnist-dit", None)
    assert trained_model("mnist-dit-untrained") == ("mnist-dit", 0)
    assert trained_model("a/folder-untrained12") == ("a/folder", 12)
    weights = [pipe_of(f"mnist-dit-untrained{seed}").transformer.state_dict() for seed in (0, 1)]
    name = next(name for name, weight in weights[0].items() if weight.ndim > 1)
    assert not torch.equal(weights[0][name], weights[1][name])


def test_an_image_set_goes_through_labels_then_seeds(tiny_pipe):
    images = ImageSet.of("mnist-dit", seeds=(4, 5), labels=(2, 1), steps=3)
    assert images.pairs == ((4, 2), (4, 1), (5, 2), (5, 1))
    assert images.noise_seeds == [4002, 4001, 5002, 5001]
    assert [part.pairs for part in images.by_seed()] == [images.pairs[:2], images.pairs[2:]]
    assert [len(batch) for batch in images.batches(3)] == [3, 1]
    assert images[-1:].labels == [1]
    assert images.call["class_labels"] == [2, 1, 2, 1]
    assert noise_seed(4, "a rocket", few=True) // 1000 == 4
    assert noise_seed(4, "a rocket", few=True) != noise_seed(4, "a rose", few=True)


def test_an_image_does_not_depend_on_its_set(tiny_pipe):
    tiny_pipe.set_progress_bar_config(disable=True)
    images = ImageSet.of("mnist-dit", seeds=(4, 5), labels=(2, 1), steps=3)
    whole = images.sample(tiny_pipe)
    assert whole.shape == (4, 1, 8, 8)
    torch.testing.assert_close(images[1:3].sample(tiny_pipe), whole[1:3])
    torch.testing.assert_close(images.sample(tiny_pipe, batch_size=1), whole)


def test_a_prompt_is_judged_by_the_longest_name_it_begins_with():
    model = Classifier(bands=3, classes=3, width=4, size=8, names=("red apple", "red", "rocket")).eval()
    assert [model.class_of(text) for text in ("red apple on teal", "red on teal", "rockets", "rocket")] == [
        0, 1, None, 2,
    ]  # fmt: skip
    model.head.weight.data.zero_()
    model.head.bias.data = torch.tensor([0.0, 1.0, 0.0])
    judge, images = Judge(model), torch.rand(3, 3, 16, 16)
    found = judge.correct(images, ["red apple", "red on teal", "a boat"])
    assert found[:2].tolist() == [0, 1]
    assert found[2].isnan()
    assert judge.features(images).shape == (3, 16)
    assert model.fitting(images).shape == (3, 3, 8, 8)
    assert Judge(Classifier().eval()).classifier.fitting(images) is images


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    from tests.conftest import make_tiny_pipe

    folder = tmp_path_factory.mktemp("comparison")
    make_tiny_pipe().save_pretrained(folder / "model")
    images = ImageSet.of(str(folder / "model"), labels=(0, 1), seeds=(0, 1), steps=12)
    return compare_images(images, folder=folder / "results", intervals=(3,))


def test_comparison(comparison):
    methods = ["reference", "fewer steps", "FORA (order 0)", "Taylor order 1", "Taylor order 2", "TAP"]
    assert comparison["method"].values.tolist() == methods
    assert comparison["full_passes"].values[:, 0].tolist() == [12, 6, 6, 6, 6, 6]
    assert comparison["mask"].values[1:3, 0].tolist() == ["FFFFFF", "FFF..F..F..F"]
    ratios = dict(zip(methods, comparison["flops_ratio"].values[:, 0], strict=True))
    assert ratios["fewer steps"] == 2
    # skip steps cost something, and TAP's more than a fixed predictor's
    assert 2 > ratios["FORA (order 0)"] > ratios["TAP"] > 1.5
    assert torch.isinf(torch.tensor(comparison["psnr"].values[0])).all()
    assert (comparison["psnr"].values[1:] > 5).all()
    assert comparison["seed"].values.tolist() == [0, 0, 1, 1]
    assert comparison["image"].shape == (6, 4, 1, 8, 8)


def test_table(comparison):
    _, rows = comparison_table(comparison)
    assert rows[0][:3] == ["", "reference", "12"]
    assert rows[-1][:4] == ["3", "TAP", "6", "FFF..F..F..F"]
    assert "[" in rows[-1][6]
