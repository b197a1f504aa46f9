"""`tapstudy sample`: one configuration, every option of the method."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from tapstudy.commands.checks import at_least, find_dtype, numbers, out_file, seeds_of_noise
from tapstudy.commands.errors import user_errors
from tapstudy.commands.subject import Asked, takes_subject

IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


class PolicyName(StrEnum):
    tap = "tap"
    fixed = "fixed"
    oracle = "oracle"
    random = "random"
    full = "full"


@takes_subject
def sample(
    named: Annotated[
        list[str] | None,
        typer.Argument(metavar="LABELS|PROMPTS", help="labels separated by commas, or prompts, one an argument"),
    ] = None,
    out: Annotated[Path, typer.Option(help="image file to write; of several sizes NAME-0.png, NAME-1.png ...")] = Path(
        "sample.png"
    ),
    *,
    subject: Asked,
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; the model's usual one")] = None,
    seed: Annotated[int, typer.Option(help="of the noise; image i uses seed + i")] = 0,
    policy: Annotated[PolicyName, typer.Option(help="who predicts")] = PolicyName.tap,
    fixed_order: Annotated[int, typer.Option(help="order of --policy fixed")] = 1,
    fixed_shift: Annotated[float, typer.Option(help="shift of --policy fixed")] = 0,
    interval: Annotated[int, typer.Option(help="N: a full step every N")] = 8,
    warmup_steps: Annotated[int, typer.Option(help="w: full steps at the start")] = 3,
    cooldown_steps: Annotated[int, typer.Option(help="full steps at the end")] = 0,
    full_steps: Annotated[str, typer.Option(help="explicit full steps, e.g. 0,1,2,10,30")] = "",
    orders: Annotated[str, typer.Option(help="orders of the family")] = "0,1,2",
    shifts: Annotated[str, typer.Option(help="shifts s of the horizons k - s")] = "0,1,2,3,4",
    distance: Annotated[str, typer.Option(help="cosine, l2 or l1")] = "cosine",
    residual: Annotated[str, typer.Option(help="hidden or latent")] = "hidden",
    probe_depth: Annotated[int, typer.Option(help="block whose modulated input is the probe")] = 0,
    differences: Annotated[str, typer.Option(help="recursive or divided")] = "recursive",
    basis: Annotated[str, typer.Option(help="taylor or newton")] = "taylor",
    clip: Annotated[str, typer.Option(help="none, zero or one: floor of the horizons")] = "none",
    history_dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or float64")] = "float32",
    probe_dtype: Annotated[str, typer.Option(help="the same of the stored probes; by default the model's")] = "",
    history_device: Annotated[str, typer.Option(help="where the history is kept, e.g. cpu")] = "",
    granularity: Annotated[str, typer.Option(help="token, region, step or global")] = "token",
    region_size: Annotated[int, typer.Option(help="side of a region, in tokens")] = 4,
    smooth_time: Annotated[float, typer.Option(help="sigma of a low-pass of the clock; see docs/clock.md")] = 0.0,
) -> None:
    """Sample images with one configuration and say what was run and what was skipped."""
    with user_errors():
        import torch

        from tapstudy import TAPConfig, apply_policy
        from tapstudy import smooth_time as smooth
        from tapstudy.bench.conditions import arguments_of
        from tapstudy.models.machine import find_device

        out = out_file(out, "--out", IMAGES)
        at_least(0, fixed_shift=fixed_shift, guidance=guidance)
        at_least(1, steps=steps)
        if history_device:
            find_device(history_device)
        settings: dict[str, Any] = {
            "interval": interval,
            "warmup_steps": warmup_steps,
            "cooldown_steps": cooldown_steps,
            "full_steps": numbers(full_steps, int, "--full-steps") if full_steps else None,
            "orders": numbers(orders, int, "--orders"),
            "shifts": numbers(shifts, float, "--shifts"),
            "distance": distance,
            "residual": residual,
            "probe_depth": probe_depth,
            "differences": differences,
            "basis": basis,
            "clip": None if clip == "none" else clip,
            "history_dtype": find_dtype(history_dtype, "--history-dtype"),
            "probe_dtype": find_dtype(probe_dtype, "--probe-dtype") if probe_dtype else None,
            "history_device": history_device or None,
            "granularity": granularity,
            "region_size": region_size,
        }
        chosen = _policy(policy, TAPConfig.of(settings), fixed_order, fixed_shift, seed)
        _, pipe, wanted = subject.load(named or [], repeats=True)
        seeds = seeds_of_noise([seed + i for i in range(len(wanted))], "--seed")
        usual: dict[str, Any] = {} if guidance is None else {"guidance_scale": guidance}
        with smooth(pipe, smooth_time), apply_policy(pipe, chosen) as handle:
            started = time.perf_counter()
            images = []
            for group, generators in _groups(pipe, wanted, [torch.Generator().manual_seed(each) for each in seeds]):
                call = {"num_inference_steps": steps, **usual, **arguments_of(group)}
                images += pipe(**call, generator=generators, output_type="pil", return_dict=False)[0]
            seconds = time.perf_counter() - started
        written = _save(images, out)
        typer.echo(handle.summary())
        typer.echo(f"{len(images)} images in {seconds:.2f} s, written to {', '.join(map(str, written))}")


def _save(images: list[Any], out: Path) -> list[Path]:
    """Write images, or videos as rows of frames, into one picture; those of several sizes into one file each."""
    from diffusers.utils import make_image_grid
    from PIL import Image

    out.parent.mkdir(parents=True, exist_ok=True)
    rows = images if isinstance(images[0], list) else [images[i : i + 10] for i in range(0, len(images), 10)]
    if len({image.size for row in rows for image in row}) > 1:
        return [path for i, image in enumerate(images) for path in _save([image], out.with_stem(f"{out.stem}-{i}"))]
    columns = max(map(len, rows))
    blank = Image.new(rows[0][0].mode, rows[0][0].size)
    padded = [image for row in rows for image in [*row, *[blank] * (columns - len(row))]]
    make_image_grid(padded, rows=len(rows), cols=columns).save(out)
    return [out]


def _groups(pipe: Any, wanted: list[Any], generators: list[Any]) -> list[tuple[list[Any], list[Any]]]:
    """Return what goes in one call: everything for embedded models, else image by image."""
    from tapstudy.bench.conditions import Call
    from tapstudy.models.embedded import EmbeddedPipeline

    if isinstance(pipe, EmbeddedPipeline) and not any(isinstance(one, Call) for one in wanted):
        return [(wanted, generators)]
    return [([one], [generator]) for one, generator in zip(wanted, generators, strict=True)]


def _policy(name: PolicyName, config: Any, order: int, shift: float, seed: int) -> Any:
    from tapstudy.policies.fixed import FixedPolicy
    from tapstudy.policies.full import FullPolicy
    from tapstudy.policies.oracle import OraclePolicy
    from tapstudy.policies.random import RandomPolicy
    from tapstudy.policies.tap import TAPPolicy

    match name:
        case PolicyName.tap:
            return TAPPolicy(config)
        case PolicyName.fixed:
            return FixedPolicy(order, shift, config=config)
        case PolicyName.oracle:
            return OraclePolicy(config)
        case PolicyName.random:
            return RandomPolicy(config, seed=seed)
        case PolicyName.full:
            return FullPolicy()
