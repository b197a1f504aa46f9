"""`tapstudy record`: token trajectories of the embedded models, as a Zarr folder."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import isfinite
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from tapstudy.commands.checks import embedded, numbers, usual_guidance
from tapstudy.commands.errors import user_errors
from tapstudy.commands.subject import Asked, takes_subject


class RecordedPolicy(StrEnum):
    tap = "tap"
    fixed = "fixed"
    oracle = "oracle"


@takes_subject
def record(
    out: Annotated[Path | None, typer.Argument(help="folder of the recording")] = None,
    resume: Annotated[Path | None, typer.Option(help="resume this recording; nothing else is needed")] = None,
    bundled: Annotated[bool, typer.Option(help="make the small recordings that come with the package in OUT")] = False,
    *,
    subject: Asked,
    seeds: Annotated[str, typer.Option(help="seeds separated by commas; every label or prompt with each")] = "0",
    steps: Annotated[int, typer.Option(help="sampling steps")] = 50,
    guidance: Annotated[float | None, typer.Option(help="guidance scale; the model's usual one")] = None,
    fields: Annotated[str, typer.Option(help="what to store; all scores and the image by default")] = "",
    module: Annotated[list[str] | None, typer.Option(help="NAME=PATH of a module to store; give it again")] = None,
    preview_steps: Annotated[str, typer.Option(help="steps of the field preview; all of them by default")] = "",
    interval: Annotated[int, typer.Option(help="N: a full step every N")] = 8,
    warmup_steps: Annotated[int, typer.Option(help="w: full steps at the start")] = 3,
    depths: Annotated[str, typer.Option(help="blocks whose modulated input is the field probe")] = "0",
    stored_as: Annotated[str, typer.Option(help="type of scores and features: float32 or float16")] = "float32",
    closed_loop: Annotated[bool, typer.Option(help="along the accelerated trajectory, not the exact one")] = False,
    policy: Annotated[RecordedPolicy, typer.Option(help="who predicts, closed-loop")] = RecordedPolicy.tap,
    fixed_order: Annotated[int, typer.Option(help="order of --policy fixed")] = 1,
    fixed_shift: Annotated[float, typer.Option(help="shift of --policy fixed")] = 0,
    smooth_time: Annotated[float, typer.Option(help="sigma of a low-pass of the clock; see docs/clock.md")] = 0.0,
    batch_size: Annotated[
        int, typer.Option(min=1, help="samples at a time; those of the batch in progress are lost in a kill")
    ] = 1,
    force: Annotated[bool, typer.Option(help="write even if the disk might not hold it")] = False,
) -> None:
    """Record what every token does; the same command, or --resume, resumes what was cut short."""
    with user_errors():
        from tapstudy import TAPConfig
        from tapstudy.policies.fixed import FixedPolicy
        from tapstudy.policies.oracle import OraclePolicy
        from tapstudy.policies.tap import TAPPolicy
        from tapstudy.recording.rebuild import read_configuration, recorder_arguments
        from tapstudy.recording.schema import DEFAULT_FIELDS

        if (out is None) == (resume is None):
            raise ValueError("say where to record: `tapstudy record OUT`, or `tapstudy record --resume DIR`")
        if resume is not None:
            made = read_configuration(resume)
            _record(resume, force=force, sigma=made.get("smooth_time", 0.0), **recorder_arguments(made, resume))
            return
        assert out is not None
        if bundled:
            make_bundled(out, model=subject.model)
            return
        if policy is not RecordedPolicy.tap and not closed_loop:
            raise ValueError(f"--policy {policy.value} predicts along its own trajectory: add --closed-loop")
        if guidance is not None and not isfinite(guidance):
            raise ValueError(f"--guidance must be a finite number, got {guidance}")
        model, pipe, conditions = subject.load()
        config = TAPConfig(interval=interval, warmup_steps=warmup_steps)
        chosen = {
            RecordedPolicy.tap: lambda: TAPPolicy(config),
            RecordedPolicy.fixed: lambda: FixedPolicy(fixed_order, fixed_shift, config=config),
            RecordedPolicy.oracle: lambda: OraclePolicy(config),
        }[policy]()
        # a policy without a probe has no proxy loss to store, and says so if it is asked for by name
        usual = [name for name in DEFAULT_FIELDS if name != "proxy_loss" or policy is RecordedPolicy.tap]
        _record(
            out,
            pipe=pipe,
            model=_lasting_name(model),
            calls=calls_for(
                conditions,
                numbers(seeds, int, "--seeds"),
                steps,
                usual_guidance(pipe) if guidance is None else guidance,
                batch_size,
            ),
            fields=fields.split(",") if fields else usual,
            preview_steps=numbers(preview_steps, int, "--preview-steps") if preview_steps else None,
            modules=_named(module or []),
            depths=numbers(depths, int, "--depths"),
            dtype=stored_as,
            force=force,
            sigma=smooth_time,
            keep_inputs=True,  # images that columns of a file name: --resume needs them
            **({"policy": chosen} if closed_loop else {"config": config}),
        )


def _named(modules: Sequence[str]) -> dict[str, str]:
    """Read `attn3=transformer_blocks.3.attn`; raises ValueError for anything else, and for a name given twice."""
    pairs = [one.partition("=") for one in modules]
    if bad := [one for one, (name, _, path) in zip(modules, pairs, strict=True) if not (name and path)]:
        raise ValueError(f"--module is NAME=PATH, such as attn3=transformer_blocks.3.attn, got {bad[0]!r}")
    names = [name for name, _, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--module {twice[0]}=... is given twice: choose another name for one of them")
    return {name: path for name, _, path in pairs}


def calls_for(
    conditions: Sequence[Any], seeds: Sequence[int], steps: int, guidance: float | None, batch_size: int
) -> list[dict[str, Any]]:
    """Make calls of a pipeline for every label or prompt with every seed; calls with more arguments go one by one.

    Args:
        guidance: scale; None is the pipeline's usual one.
    """
    from tapstudy.bench.conditions import Call, arguments_of

    pairs = [(condition, seed) for seed in seeds for condition in conditions]
    size = batch_size if len({type(condition) for condition in conditions} - {Call}) == 1 else 1
    named = {} if guidance is None else {"guidance_scale": guidance}
    calls = []
    for batch in (pairs[i : i + size] for i in range(0, len(pairs), size)):
        own = arguments_of([condition for condition, _ in batch])
        calls.append({"num_inference_steps": steps, **named, **own, "seed": [seed for _, seed in batch]})
    return calls


def make_bundled(folder: Path, *, model: str = "mnist-dit", steps: int = 50) -> None:
    """Make the recordings that come with the package, at most 25 MB: scores, features, closed-loop runs, the gallery.

    Of models of text, whose features alone would take more, two scored samples and closed-loop runs: 10 MB. The gallery
    is of four images without acceleration and with TAP, on the model's fitted schedule where the study has one.
    """
    from tapstudy import TAPConfig
    from tapstudy.models.embedded import conditions, data_folder
    from tapstudy.policies.fitted_schedule import FittedSchedule
    from tapstudy.policies.tap import TAPPolicy
    from tapstudy.sources import folder_of

    config, pipe = TAPConfig(interval=8), embedded(model)
    known, guidance = conditions(pipe, 10), usual_guidance(pipe)
    text = isinstance(known[0], str)
    some, two, one = ((0, 1), (0,), ()) if text else ((0, 1, 2, 3, 5, 6, 8, 9), (2, 5), (2,))

    def make(name: str, chosen: Sequence[int], **arguments: Any) -> None:
        calls = calls_for([known[i] for i in chosen], (0,), steps, guidance, len(chosen))
        _record(folder / f"{name}.zarr", model=model, pipe=pipe, calls=calls, dtype="float16", **arguments)

    make("scores", some, config=config, fields=("proxy_loss", "true_error", "choice", "latent", "image"))
    if one:
        make("features", one, config=config, fields=("probe", "residual", "image"))
    make("closed_loop", two, policy=TAPPolicy(config))
    fitted = folder_of(model, data_folder() / "study") / "schedule.json"
    if fitted.is_file() and steps == (schedule := FittedSchedule.load(fitted)).num_steps:
        config = schedule.config()
    four = (0, 1, 2, 3) if text else (2, 3, 5, 8)
    make("gallery_exact", four, config=config, fields=("image",))
    make("gallery", four, policy=TAPPolicy(config), fields=("choice", "image"))
    # other models have folders of their own in this one
    made = [file for path in folder.glob("*.zarr") for file in path.rglob("*") if file.is_file()]
    size, most = sum(file.stat().st_size for file in made), 10e6 if text else 25e6
    typer.echo(f"{folder}: {size / 1e6:.1f} MB")
    if size > most:
        raise ValueError(f"the bundled recordings in {folder} have {size / 1e6:.1f} MB, more than {most / 1e6:.0f}")


def _lasting_name(model: str) -> str:
    """Return a model's name with the absolute path where it is a folder, so that --resume finds it from anywhere."""
    from dataclasses import replace

    from tapstudy.models.embedded import data_folder
    from tapstudy.models.sources import Source

    source = Source.parse(model)
    folder = Path(source.name).expanduser()
    embedded = (data_folder() / "models" / source.name).is_dir()
    return str(replace(source, name=str(folder.absolute()))) if folder.is_dir() and not embedded else model


def _how_to_resume(path: Path) -> str:
    from tapstudy import RecordingError, open_recording

    try:
        kept = open_recording(path, verify=False).sizes["sample"]
    except RecordingError:
        return "no sample was finished yet, begin again with the same command"
    return f"finished samples are kept ({kept}); resume with: tapstudy record --resume {quote(str(path))}"


def _record(path: Path, *, model: str, pipe: Any = None, sigma: float = 0.0, **arguments: Any) -> None:
    """Record with `pipe`, or the model of that name."""
    from tapstudy import record as make
    from tapstudy import smooth_time
    from tapstudy.bench.image_set import pipe_of

    pipe = pipe or pipe_of(model)
    try:
        with smooth_time(pipe, sigma):
            made = make(pipe, path=path, model=model, **arguments)
    except KeyboardInterrupt:
        typer.echo(f"\nstopped: {_how_to_resume(path)}", err=True)
        raise typer.Exit(130) from None
    typer.echo(f"{made.sizes['sample']} samples in {path}")
