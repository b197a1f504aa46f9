import shutil

import pytest
import torch

import tapstudy
from tapstudy.instrument.flops import count_flops
from tapstudy.models.classifier import classify
from tapstudy.models.embedded import WEIGHTS, data_folder, load_classifier, small_sibling, untrained_like
from tests.table import each_row


@pytest.fixture(scope="module")
def digits():
    pipe = tapstudy.load("mnist-dit")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_samples_are_the_digits_asked_for(digits):
    labels = torch.arange(10)
    images = digits(labels, 5, 2.0, generator=torch.Generator().manual_seed(0), output_type="latent").images
    assert (classify(load_classifier(), images)[0] == labels).sum() >= 9
    assert digits.transformer.dtype == torch.float32


def test_untrained_control_is_not_trivial(digits):
    """Weights of its own; activations of sane size, blocks that matter, an output that depends on all inputs."""
    control, again = untrained_like(digits, seed=1), untrained_like(digits, seed=1)
    a, b, c = (p.transformer.proj_out_2.weight for p in (control, again, digits))
    assert torch.equal(a, b)
    assert a.shape == c.shape
    assert not torch.equal(a, c)
    model, added = control.transformer, []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda _, given, out: added.append(((out - given[0]).std() / out.std()).item()))
    image = torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))

    def velocity(image, time, label):
        with torch.no_grad():
            return model(image, timestep=torch.full((2,), time), class_labels=torch.tensor([label, label]))[0]

    base = velocity(image, 900.0, 1)
    assert 0.3 < base.std() < 3
    assert all(0.2 < share < 1.5 for share in added)
    for other in (velocity(image.flip(-1), 900.0, 1), velocity(image, 300.0, 1), velocity(image, 900.0, 2)):
        assert (other - base).std() > 0.1 * base.std()


def test_the_rough_control_is_another_model_of_the_same_shape(digits):
    rough = tapstudy.load("mnist-dit-rough")
    shapes = [{name: p.shape for name, p in pipe.transformer.named_parameters()} for pipe in (rough, digits)]
    assert shapes[0] == shapes[1]
    assert (rough.config.get("smooth_sigma", 0.0), digits.config["smooth_sigma"]) == (0.0, 30.0)
    assert not torch.equal(rough.transformer.proj_out_2.weight, digits.transformer.proj_out_2.weight)
    assert load_classifier("mnist-dit-rough").config == load_classifier().config


def test_the_small_model_is_of_the_same_family_and_a_fifth_of_the_cost(digits, tmp_path):
    small = tapstudy.load("mnist-dit-small")
    assert (small_sibling("mnist-dit"), small_sibling("emoji-flux")) == ("mnist-dit-small", None)
    same = ("sample_size", "patch_size", "num_embeds_ada_norm", "num_attention_heads")
    assert [small.transformer.config[name] for name in same] == [digits.transformer.config[name] for name in same]
    assert small.config["smooth_sigma"] == digits.config["smooth_sigma"] == 30
    image, times = torch.randn(1, 1, 28, 28), torch.tensor([500.0])
    costs = [
        count_flops(lambda pipe=pipe: pipe.transformer(image, timestep=times, class_labels=torch.tensor([3])))
        for pipe in (small, digits)
    ]
    assert costs[0] < 0.25 * costs[1]
    labels = torch.arange(10)
    images = small(labels, 5, 2.0, generator=torch.Generator().manual_seed(0), output_type="latent").images
    assert (classify(load_classifier(), images)[0] == labels).sum() >= 7
    (tmp_path / "model-small").mkdir()
    assert small_sibling(tmp_path / "model") == f"{tmp_path / 'model-small'}"
    assert small_sibling(f"{tmp_path}/model/") == f"{tmp_path / 'model-small'}"


@each_row("name", ["mnist-dit", "mnist-dit-small", "mnist-dit-rough"])
def test_size_and_format(name):
    folder = data_folder() / "models" / name
    assert (folder / "transformer" / WEIGHTS).stat().st_size < 20e6
    assert not [path for path in folder.rglob("*") if path.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    card = (folder / "README.md").read_text()
    for part in (f"# {name}\n", f'load("{name}")', "Training", "Quality", "Frechet", "MNIST", "loss.csv"):
        assert part in card


def test_unknown_missing_corrupt_and_other_weights(tmp_path, tiny_pipe):
    with pytest.raises(FileNotFoundError, match=r"no model 'mnist-dot': the embedded models are .*mnist-dit"):
        tapstudy.load("mnist-dot")
    folder = tmp_path / "model"
    shutil.copytree(data_folder() / "models" / "mnist-dit", folder)
    weights = folder / "transformer" / WEIGHTS
    intact = weights.read_bytes()
    tiny_pipe.save_pretrained(tmp_path / "tiny")
    others = (tmp_path / "tiny" / "transformer" / WEIGHTS).read_bytes()
    for damaged in (intact[:1000], b"\xff" * 64 + intact[64:], b"", others):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"weights in .* cannot be used"):
            tapstudy.load(folder)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=rf"not a complete model: transformer/{WEIGHTS} is missing"):
        tapstudy.load(folder)
