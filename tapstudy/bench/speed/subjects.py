"""What `bench speed` and `bench memory` run: embedded models as they are, and real configurations with random weights.

How fast a model is does not depend on its weights. So a preset is a configuration, made on the spot without any
download, behind the smallest loop that samples with it: Euler steps, no text encoder, no autoencoder.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

from tapstudy.bench.speed.example_inputs import example_inputs
from tapstudy.bench.speed.real_sizes import REAL_SIZES, RealSize
from tapstudy.instrument.adapters import find_adapter
from tapstudy.models.embedded import conditions, data_folder, load

GUIDANCE = 2.0
LABELS = 10


@dataclass(frozen=True)
class Preset:
    """Hold a transformer class and its size.

    Attributes:
        name: of the class, in diffusers.
        time_scale: what the class calls the end of time, 1 or 1000.
    """

    name: str
    size: RealSize
    time_scale: float

    @property
    def width(self) -> int:
        """Return channels of the hidden state."""
        defaults = inspect.signature(getattr(diffusers, self.name)).parameters
        heads, size = (
            self.size.config.get(name, defaults[name].default) for name in ("num_attention_heads", "attention_head_dim")
        )
        return int(heads * size)

    def build(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the model, with the random weights that its class starts from, made in `dtype`."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model: nn.Module = getattr(diffusers, self.name)(**self.size.config)
        finally:
            torch.set_default_dtype(before)
        return model


PRESETS = {
    "flux-200m": Preset(
        "FluxTransformer2DModel",
        RealSize(
            "FLUX at half the width, 2 + 2 blocks, 512 x 512", (1, 32, 32), 128,
            {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 12, "guidance_embeds": True},
        ),
        1,
    ),
    "flux-500m": Preset(
        "FluxTransformer2DModel",
        RealSize(
            "FLUX at half the width, 3 + 6 blocks, 512 x 512", (1, 32, 32), 128,
            {"num_layers": 3, "num_single_layers": 6, "num_attention_heads": 12, "guidance_embeds": True},
        ),
        1,
    ),
    "flux-dev": Preset("FluxTransformer2DModel", REAL_SIZES["FluxTransformer2DModel"], 1),
    "qwen-image": Preset("QwenImageTransformer2DModel", REAL_SIZES["QwenImageTransformer2DModel"], 1),
    "hunyuan-video": Preset("HunyuanVideoTransformer3DModel", REAL_SIZES["HunyuanVideoTransformer3DModel"], 1000),
}  # fmt: skip


class EulerLoop:
    """Hold Euler steps with a bare transformer. Stands where policies and third-party caches expect a pipeline.

    Args:
        inputs: of one call of the transformer; its latent and timestep are replaced at every step.
    """

    def __init__(self, transformer: nn.Module, inputs: Mapping[str, Any], *, time_scale: float) -> None:
        self.transformer, self.inputs, self.time_scale = transformer, dict(inputs), time_scale
        self.scheduler = FlowMatchEulerDiscreteScheduler()
        adapter = find_adapter(transformer)
        assert adapter is not None
        self._latent, self._timestep = adapter.latent, adapter.timestep

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer}

    @torch.no_grad()
    def __call__(self, steps: int) -> Tensor:
        """Return the latent at the end, of the shape of the one in the inputs."""
        x: Tensor = self.inputs[self._latent]
        given: Tensor = self.inputs[self._timestep]  # (B,)
        self.scheduler.set_timesteps(steps, device=x.device)
        self.scheduler.set_begin_index(0)
        for t in self.scheduler.timesteps:
            timestep = (t / self.scheduler.config.num_train_timesteps * self.time_scale).to(given).expand(given.shape)
            arguments = self.inputs | {self._latent: x, self._timestep: timestep}
            velocity = self.transformer(**arguments, return_dict=False)[0]
            x = self.scheduler.step(velocity, t, x, return_dict=False)[0]
        return x


@dataclass(frozen=True)
class Subject:
    """Hold something to time.

    Attributes:
        target: the pipeline, or what stands for one.
        loop: runs it for a number of steps.
        dtype: of the weights.
        batch: samples in one call of the transformer, both branches of guidance counted.
    """

    name: str
    label: str
    target: Any
    loop: Callable[[int], object]
    device: torch.device
    dtype: torch.dtype
    batch: int

    @property
    def model(self) -> nn.Module:
        return self.target.transformer

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())


def split_name(name: str) -> tuple[str, int | None]:
    """Return model and number of images of "model@images"; None where only the model is named.

    Raises ValueError on an invalid number of images.
    """
    model, at, count = name.rpartition("@")
    if not at or Path(name).is_dir():
        return name, None
    if not (count.isdecimal() and int(count)):
        raise ValueError(f"{name!r}: after the @ goes a number of images, such as {model}@32")
    return model, int(count)


def check_name(name: str) -> None:
    """Raises ValueError when `name` is neither a preset nor a model that `tapstudy.load` finds, with or without @."""
    name, _ = split_name(name)
    embedded = sorted(path.parent.name for path in (data_folder() / "models").glob("*/model_index.json"))
    if name in PRESETS or name in embedded or Path(name).is_dir():
        return
    near = difflib.get_close_matches(name, [*PRESETS, *embedded], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise ValueError(
        f"no model {name!r}; {hint}There are the presets {', '.join(PRESETS)}, the embedded models "
        f"{', '.join(embedded)}, and folders of models"
    )


def make_subject(
    name: str, *, batch_size: int | None = None, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Subject:
    """Return a preset, or an embedded model (or model folder) with guidance.

    Args:
        name: may end with "@" and a number of images.
        batch_size: images of a name without one; 8 of an embedded model by default, and one of a preset.
        dtype: of the weights; float32 for embedded models by default, bfloat16 for presets.
        device: the CPU by default.

    Raises:
        ValueError: no such model, or a batch without images.
        FileNotFoundError: a folder that holds no model.
    """
    check_name(name)
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"{name}: a batch needs at least one image, got batch_size {batch_size}")
    model, images = split_name(name)
    make = _preset if model in PRESETS else _embedded
    return replace(make(model, images or batch_size, dtype, device or torch.device("cpu")), name=name)


def _preset(name: str, batch_size: int | None, dtype: torch.dtype | None, device: torch.device) -> Subject:
    preset, batch, dtype = PRESETS[name], batch_size or 1, dtype or torch.bfloat16
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type="cuda"), torch.no_grad(), torch.device(device):
        torch.manual_seed(0)
        model = preset.build(dtype).eval()
        nn.Module.to(model, dtype)  # the model's own `to` warns that parts of some classes stay in float32
        inputs = example_inputs(model, preset.size.grid, text=preset.size.text, batch=batch)
    loop = EulerLoop(model, inputs, time_scale=preset.time_scale)
    return Subject(name, preset.size.label, loop, loop, device, dtype, batch)


def _embedded(name: str, batch_size: int | None, dtype: torch.dtype | None, device: torch.device) -> Subject:
    batch, dtype = batch_size or 8, dtype or torch.float32
    pipe = load(name, dtype=dtype)
    if device.type != "cpu":
        pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    asked: Any = conditions(pipe, batch)

    def loop(steps: int) -> object:
        generators = [torch.Generator().manual_seed(i) for i in range(batch)]
        return pipe(asked, steps, GUIDANCE, generator=generators, output_type="latent")

    label = f"{Path(name).name}, guidance {GUIDANCE:g}"
    return Subject(name, label, pipe, loop, device, dtype, 2 * batch)
