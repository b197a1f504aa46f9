"""A low-pass of the clock: exact, for every class, and gone without a trace."""

import copy

import accelerate
import diffusers
import pytest
import torch
from diffusers.hooks import apply_group_offloading
from diffusers.models.embeddings import Timesteps, get_timestep_embedding
from numpy.polynomial.hermite_e import hermegauss
from packaging.version import Version
from torch import nn

import tapstudy
from tapstudy.instrument.smooth_time import smoothed_sigma
from tapstudy.instrument.time_features import TimeEmbedder, frequencies, time_embedders
from tests.conftest import make_tiny_pipe
from tests.instrument.replay import Replay
from tests.instrument.tiny_models import VARIANTS, make
from tests.table import each_row
from tests.training.emoji import tiny_pipe as tiny_text_pipe

CPU = torch.device("cpu")
GROUPS = pytest.mark.skipif(
    Version(diffusers.__version__) < Version("0.42") and not torch.accelerator.is_available(),
    reason="group offloading of this diffusers needs an accelerator",
)
SIGMA = 1.5
# how many layers of each model read the timestep
LAYERS = {"DiT": 3, "HunyuanVideo": 2, "HunyuanVideo1.5": 2, "HunyuanVideo1.5-text": 2, "FramePack": 2}
# models that make the features in ways of their own
REFUSED = ("Bria", "BriaFibo", "Chroma", "Cosmos", "Kandinsky5", "Krea2", "PRX", "SkyReelsV2")
SMOOTHED = [name for name in VARIANTS if name not in REFUSED]


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


# models whose pipelines give times from 0 to 1
TO_ONE = (
    "AuraFlow", "Flux", "Flux-schnell", "Flux2", "LongCat", "Lumina2", "LuminaNext", "NucleusMoE", "Ovis", "QwenImage",
    "Sana-Sprint", "ZImage",
)  # fmt: skip


def argument(name, tiny, time):
    """The timestep argument of the model of that name at `time` of 1000."""
    unit = 1e-3 if name in TO_ONE else 1.0
    return {tiny.timestep: torch.full_like(tiny.inputs[tiny.timestep], time * unit)}


def first(features):
    """Those of one timestep, of a batch of them and perhaps of tokens."""
    return features.flatten(0, -2)[0]


class Features:
    """What the layers that read the timestep are given, and what they make of it."""

    def __init__(self, model):
        self.seen = {}
        for embedder in time_embedders(model):
            embedder.linear.register_forward_hook(
                lambda _, args, output, path=embedder.path: self.seen.update(
                    {path: (first(args[0]).double(), first(output))}
                )
            )

    def at(self, name, tiny, time):
        tiny(**argument(name, tiny, time))
        return dict(self.seen)


# where the clock stands beside guidance, sizes or offsets, in the blocks, per token, or runs to 1 or upwards
CLOCKS = (
    "CogVideoX1.5", "DiT", "Flux", "HunyuanDiT", "HunyuanVideo", "Lumina2", "PixArt-1024", "Sana-Sprint", "Wan2.2",
    "ZImage",
)  # fmt: skip
# with a unit, or with names, of their own
UNITS = ("AuraFlow", "LuminaNext", "NucleusMoE", "QwenImage", "Sana")


@pytest.mark.parametrize("name", [*CLOCKS, *(pytest.param(name, marks=pytest.mark.slow) for name in UNITS)])
def test_the_model_reads_gaussian_averages_of_its_features(name):
    """Times are small: the features of the models themselves are rounded to single precision."""
    tiny = make(name)
    features, time = Features(tiny.model), 4.0
    nodes, mass = hermegauss(12)
    mean: dict = {}
    for node, share in zip(nodes, mass / mass.sum(), strict=True):
        for path, (read, _) in features.at(name, tiny, time + SIGMA * node).items():
            mean[path] = mean.get(path, 0) + share * read
    assert len(mean) == LAYERS.get(name, 1)
    before = weights(tiny.model)
    with tapstudy.smooth_time(tiny.model, SIGMA) as handle:
        assert set(handle.layers) == set(mean)
        changed = {key for key, value in tiny.model.state_dict().items() if not torch.equal(value, before[key])}
        assert changed == {f"{path}.weight" for path in mean}  # no embedding of guidance, sizes or offsets
        for path, (read, made) in features.at(name, tiny, time).items():
            linear = tiny.model.get_submodule(path)
            weight = before[f"{path}.weight"].double()
            scaled = linear.weight.double() / torch.where(weight == 0, 1, weight)
            assert torch.allclose(scaled[0] * read, mean[path], atol=1e-6)
            assert torch.allclose(scaled, scaled[:1].expand_as(scaled), atol=1e-6)
            bias = 0 if linear.bias is None else linear.bias.double()
            assert torch.allclose(made.double(), weight @ mean[path] + bias, atol=3e-6)
    assert all(torch.equal(value, before[key]) for key, value in tiny.model.state_dict().items())


def test_the_factors_at_any_time():
    """Wide Gaussians at late times, against quadrature in double precision."""
    for flip in (True, False):
        for channels, shift, scale in ((32, 0, 1.0), (32, 1, 1.0), (33, 0, 1.0), (32, 0, 0.5)):
            compare_factors(flip, channels, shift, scale)


def compare_factors(flip, channels, shift, scale):
    omega = frequencies(channels, shift=shift, scale=scale)
    embedder = TimeEmbedder("", nn.Identity(), None, nn.Identity(), omega, channels)
    nodes, mass = (torch.tensor(values) for values in hermegauss(120))
    sigma, time = 8.0, 731.3

    def features(t):
        phase = t[:, None] * omega
        parts = (phase.cos(), phase.sin()) if flip else (phase.sin(), phase.cos())
        return nn.functional.pad(torch.cat(parts, dim=-1), (0, channels % 2))

    ours = features(torch.tensor([time], dtype=torch.float64))[0]
    stock = get_timestep_embedding(
        torch.tensor([time]), channels, flip_sin_to_cos=flip, downscale_freq_shift=shift, scale=scale
    )
    assert torch.allclose(ours, stock[0].double(), atol=1e-3)
    mean = (features(time + sigma * nodes) * (mass / mass.sum())[:, None]).sum(dim=0)
    assert torch.allclose(ours * embedder.low_pass(sigma), mean, atol=1e-6)


@pytest.mark.parametrize("name", ["DiT", "ZImage"])
def test_the_output_changes_and_comes_back(name):
    tiny = make(name)
    before, plain = weights(tiny.model), tiny()
    handle = tapstudy.smooth_time(tiny.model, 40)
    assert not torch.equal(tiny(), plain)
    handle.remove()
    handle.remove()
    assert torch.equal(tiny(), plain)
    assert weights(tiny.model).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in tiny.model.state_dict().items())
    with tapstudy.smooth_time(tiny.model, 0):
        assert torch.equal(tiny(), plain)


def test_a_clock_in_the_clock_of_others():
    """The module that makes features of the timestep may be the one that makes those of the guidance."""
    tiny = make("Flux")
    embedder = tiny.model.time_text_embed
    scales = torch.tensor([3500.0])
    guided = embedder.guidance_embedder(embedder.time_proj(scales))
    with tapstudy.smooth_time(tiny.model, 40):
        assert torch.equal(embedder.guidance_embedder(embedder.time_proj(scales)), guided)


def test_other_precisions():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        model = make("SD3").model.to(dtype)
        layer, before = model.time_text_embed.timestep_embedder.linear_1, weights(model)
        (embedder,) = time_embedders(model)
        with tapstudy.smooth_time(model, 30):
            wanted = before["time_text_embed.timestep_embedder.linear_1.weight"].double() * embedder.low_pass(30)
            assert torch.equal(layer.weight, wanted.to(dtype))
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_cast_meanwhile():
    model, plain = make("Wan").model, make("Wan").model.to(torch.bfloat16)
    with tapstudy.smooth_time(model, 30):
        model.to(torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), plain.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("name", "kind", "order"),
    [
        ("ZImage", "accelerate", "before"),
        ("DiT", "accelerate", "within"),
        pytest.param("Flux", "group", "before", marks=GROUPS),
        pytest.param("ZImage", "group", "within", marks=GROUPS),
        ("SD3", "model", "within"),
    ],
)
def test_offloading(name, kind, order):
    tiny, plain = make(name), make(name)
    with tapstudy.smooth_time(plain.model, 30):
        smooth = plain()

    def offload():
        if kind == "accelerate":
            accelerate.cpu_offload(tiny.model, execution_device=CPU)
        elif kind == "model":
            accelerate.cpu_offload_with_hook(tiny.model, execution_device=CPU)
        else:
            apply_group_offloading(tiny.model, onload_device=CPU, offload_device=CPU, offload_type="leaf_level")

    if order == "before":
        offload()
        assert torch.equal(tiny(), plain())
    with tapstudy.smooth_time(tiny.model, 30):
        if order == "within":
            offload()
        assert torch.equal(tiny(), smooth)
    assert torch.equal(tiny(), plain())


def test_weights_on_disk_are_refused(tmp_path):
    model = make("SD3").model
    accelerate.disk_offload(model, tmp_path, execution_device=CPU)
    with pytest.raises(ValueError, match="offloaded to disk"):
        tapstudy.smooth_time(model, 30)


def test_twice_is_refused():
    pipe = make_tiny_pipe()
    before = weights(pipe.transformer)
    with tapstudy.smooth_time(pipe, 30), pytest.raises(RuntimeError, match="smoothed already, with sigma 30"):
        tapstudy.smooth_time(pipe.transformer, 20)
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
    with tapstudy.smooth_time(pipe, 20):  # and afterwards it may be smoothed again
        assert smoothed_sigma(pipe) == 20
    assert smoothed_sigma(pipe) == 0


class LoRA(nn.Module):
    """As peft wraps a layer."""

    def __init__(self, base_layer):
        super().__init__()
        self.base_layer = base_layer
        self.lora_A = nn.Linear(base_layer.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base_layer.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Quantised(nn.Linear):
    pass


UNFIT = (
    (lambda parent: setattr(parent, "linear_1", LoRA(parent.linear_1)), "wrapped by an adapter .LoRA.: unload"),
    (lambda parent: setattr(parent, "linear_1", Quantised(256, 16)), "is a Quantised, not a plain torch.nn.Linear"),
    (lambda parent: parent.linear_1.to(torch.float8_e4m3fn), "float8_e4m3fn: only plain weights"),
    (lambda parent: nn.utils.parametrizations.weight_norm(parent.linear_1), "not a plain torch.nn.Linear"),
    (lambda parent: setattr(parent, "linear_1", nn.Linear(128, 16)), "reads 128 values, but there are 256"),
)


def test_layers_that_cannot_be_scaled():
    """Nothing is changed, not even in the other layers of the model."""
    for change, message in UNFIT:
        model = make("HunyuanVideo").model
        change(model.time_text_embed.timestep_embedder)
        before = weights(model.context_embedder)
        with pytest.raises(ValueError, match=message):
            tapstudy.smooth_time(model, 30)
        assert all(torch.equal(value, before[name]) for name, value in model.context_embedder.state_dict().items())


def test_lora_elsewhere_and_lora_that_comes_later():
    tiny = make("SD3")
    tiny.model.transformer_blocks[0].attn.to_q = LoRA(tiny.model.transformer_blocks[0].attn.to_q)
    parent = tiny.model.time_text_embed.timestep_embedder
    layer, before, plain = parent.linear_1, parent.linear_1.weight.clone(), tiny()
    with tapstudy.smooth_time(tiny.model, 30):
        assert not torch.equal(tiny(), plain)
        parent.linear_1 = LoRA(layer)
        assert smoothed_sigma(tiny.model) == 30
        with pytest.raises(RuntimeError, match="smoothed already"):
            tapstudy.smooth_time(tiny.model, 30)
    assert torch.equal(layer.weight, before)


def test_no_clock_and_no_width():
    model = make("SD3").model
    model.time_text_embed.time_proj = nn.Identity()
    with pytest.raises(ValueError, match="SD3Transformer2DModel cannot be smoothed in time"):
        tapstudy.smooth_time(model, 30)
    for sigma in (-1, float("nan"), float("inf"), True, "40"):
        with pytest.raises(ValueError, match="sigma must be a finite number"):
            tapstudy.smooth_time(make("SD3").model, sigma)
    with pytest.raises(TypeError, match="no supported transformer"):
        tapstudy.smooth_time(nn.Linear(2, 2), 30)


def test_weights_changed_by_others_stay():
    model = make("SD3").model
    layer = model.time_text_embed.timestep_embedder.linear_1
    handle = tapstudy.smooth_time(model, 30)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    with pytest.warns(UserWarning, match="was changed while smooth_time was in force"):
        handle.remove()
    assert bool((layer.weight == 1).all())
    assert smoothed_sigma(model) == 0


def test_a_model_loaded_for_inference():
    with torch.inference_mode():
        model = copy.deepcopy(make("SD3").model)
    before = weights(model)
    with tapstudy.smooth_time(model, 30):
        pass
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("first", ["smooth_time", "policy"])
def test_beside_a_policy(first):
    """A policy replays full steps of the smoothed model, whichever came first."""
    tiny, plain = make("Flux"), make("Flux")
    with tapstudy.smooth_time(plain.model, 30):
        smooth = plain()
    policy = lambda: tapstudy.apply_policy(tiny.model, Replay(full=(0, 2)))  # noqa: E731
    outer = tapstudy.smooth_time(tiny.model, 30) if first == "smooth_time" else policy()
    inner = policy() if first == "smooth_time" else tapstudy.smooth_time(tiny.model, 30)
    outputs = [tiny() for _ in range(3)]
    outer.remove()
    inner.remove()
    assert torch.equal(outputs[0], smooth)
    assert torch.equal(outputs[2], smooth)
    assert torch.equal(tiny(), plain())


def test_the_text_pipeline():
    """Trained with a low-pass of its own, which is in its weights already; another one comes on top."""
    pipe = tiny_text_pipe()

    def run():
        generator = torch.Generator().manual_seed(0)
        return pipe("apple", 4, generator=generator, output_type="latent").images

    plain = run()
    with tapstudy.smooth_time(pipe, 30) as handle:
        assert len(handle.layers) == 1
        assert not torch.equal(run(), plain)
    assert torch.equal(run(), plain)


@each_row("name", SMOOTHED)
def test_every_clock_is_found(name):
    """No projection of a supported model is missed but those of guidance, sizes and offsets; all run as is told."""
    others = {"guidance_condition_proj", "additional_condition_proj", "ofs_proj", "condition_proj", "size_proj"}
    tiny, time = make(name), 4.0
    names = {path.rpartition(".")[2] for path, module in tiny.model.named_modules() if isinstance(module, Timesteps)}
    embedders = time_embedders(tiny.model)
    assert names - others <= {embedder.name for embedder in embedders}
    assert len(embedders) == LAYERS.get(name, 1)
    read = Features(tiny.model).at(name, tiny, time)
    for embedder in embedders:
        phase = embedder.omega * time
        assert torch.allclose(read[embedder.path][0], torch.cat([phase.cos(), phase.sin()]), atol=1e-5)


@each_row("name", [name for name in VARIANTS if name in REFUSED])
def test_a_clock_of_another_make_is_refused(name):
    with pytest.raises(ValueError, match="cannot be smoothed in time: it has no timestep embedding made of"):
        tapstudy.smooth_time(make(name).model, 30)
