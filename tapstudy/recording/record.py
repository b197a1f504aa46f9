"""Record what every token does while a pipeline samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from tqdm.auto import tqdm

from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.handle import apply_policy, find_transformers
from tapstudy.instrument.smooth_time import smoothed_sigma
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Policy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.tap import TAPPolicy
from tapstudy.recording.calls import Sample, pipeline_arguments, samples_of, whole_numbers
from tapstudy.recording.damage import RecordingError, recording_path
from tapstudy.recording.inputs import describe_inputs
from tapstudy.recording.previews import Previews
from tapstudy.recording.schema import (
    DEFAULT_FIELDS,
    FEATURE_DTYPES,
    FEATURES,
    asked_fields,
    check_fields,
    check_modules,
)
from tapstudy.recording.scorer import Reduce, Scorer
from tapstudy.recording.store import open_recording
from tapstudy.recording.writer import Writer

PROGRESS = "{l_bar}{bar}| {n:.1f}/{total_fmt} samples [{elapsed}<{remaining}{postfix}]"
PACKAGES = ("tapstudy", "torch", "diffusers", "xarray", "zarr")


def record(
    pipe: Any,
    calls: Sequence[Mapping[str, Any]],
    path: str | Path,
    *,
    fields: Sequence[str] = DEFAULT_FIELDS,
    config: TAPConfig | None = None,
    policy: Policy | None = None,
    modules: Mapping[str, str] | None = None,
    preview_steps: Sequence[int] | None = None,
    preview_size: int = 128,
    depths: Sequence[int] = (0,),
    dtype: str = "float32",
    reduce: Mapping[str, Reduce] | None = None,
    transformer: str | None = None,
    model: str | None = None,
    keep_inputs: bool = False,
    force: bool = False,
    progress: bool = True,
) -> xr.Dataset:
    """Sample with `pipe` and write what its tokens do into a Zarr store, sample by sample.

    Without `policy` the recording is teacher-forced: the model runs in full at every step, and TAP's family is scored
    at the skip steps of `config`'s schedule against the exact trajectory. With `policy` it is closed-loop: the
    accelerated trajectory, with a shadow full pass at every skip step for the true error along it.

    A `smooth_time` in force is noted in the configuration.

    A recording that was cut short keeps its finished samples; the same call resumes it.

    Args:
        pipe: a pipeline with a supported transformer.
        calls: keyword arguments of the pipeline, one dict per batch of samples, as JSON could hold them, with images,
            arrays and tensors at any depth; of these the configuration holds a hash. Each needs `seed`: a list with
            one integer per sample, each for a generator of its own, or one integer for a generator that all samples
            of the call share. The coordinates `draw` and `draws` tell the latter's samples apart: two samples that
            agree in `seed`, `draw` and `draws` begin from the same noise. Samples of a call are finished together: a
            recording that is killed loses those of the call in progress.
        path: folder of the store.
        fields: what to store: "proxy_loss", "true_error", "choice", "image", and the features "probe", "residual",
            "latent" (the noisy input of the model) and "latent_residual" (teacher-forced only); also "preview", the
            clean image or video that the sampler expects at a step, with guidance, decoded and made small.
        modules: name -> path of modules of the transformer, as in {"attn3": "transformer_blocks.3.attn"}; what it gives
            is stored under the name: the image stream of a block, else the first tensor. In the dimension `token` are
            the image's tokens alone; an output without them, or that may be text of that many tokens, keeps all, in
            dimensions of its own (`attn3_axis1`, `attn3_channel`). Where a module did not run is NaN, with a warning.
        preview_steps: steps with a preview; all when None. Each costs a pass of the decoder.
        preview_size: longest side of previews in pixels.
        config: schedule, family, distance and residual site of a teacher-forced recording.
        policy: of a closed-loop recording.
        depths: blocks whose modulated input is stored as `probe`.
        dtype: of scores and features on disk, "float32" or "float16".
        reduce: name of a feature or module -> function (batch, token, channel) -> (batch, token, fewer), applied before
            storing.
        transformer: name of the component to record, for pipelines with several.
        model: name to write down for `tapstudy record --resume`.
        keep_inputs: also keep the images, arrays and tensors of the calls in the recording, each once, so that it can
            be resumed without them. One that was made without gets them when it is resumed.
        force: write even if the disk might not hold it.

    Returns:
        The finished recording, lazily loaded.

    Raises:
        RecordingError: another recording at `path` (it tells which argument of which call differs), no room, values
            that are not finite, another process recording, or steps that the model ran unseen.
        ValueError, TypeError: invalid arguments.

    Cost: per step one transfer of what is stored. Memory: one chunk (8 MiB) per variable, context and
    sample of a batch.
    """
    path = recording_path(path)
    wanted, depths = check_fields(tuple(fields)), tuple(dict.fromkeys(depths))
    paths = check_modules(modules or {})
    previews = None
    if "preview" in wanted:
        previews = Previews(pipe, steps=preview_steps, longest=preview_size, transformer=transformer)
    elif preview_steps is not None:
        raise ValueError("preview_steps are given, but preview is not among the fields")
    if dtype not in FEATURE_DTYPES:
        raise ValueError(f"dtype must be one of {FEATURE_DTYPES}, got {dtype!r}")
    if stray := sorted({*(reduce or {})} - {*paths, *(name for name in wanted if name in FEATURES)}):
        raise ValueError(f"reduce names {stray}, which are no features or modules that are stored")
    judge = _judge(config, policy, wanted, depths)
    groups = [samples_of(index, call) for index, call in enumerate(calls)]
    if not any(groups):
        raise ValueError("there are no calls to record")
    inputs: dict[str, NDArray[Any]] = {}
    configuration: dict[str, Any] = {
        "model": model or type(pipe).__name__,
        "mode": "closed-loop" if policy is not None else "teacher-forced",
        "policy": describe(judge),
        "calls": [describe_inputs(call, f"call {i}", inputs) for i, call in enumerate(calls)],
        "fields": asked_fields(wanted),
        "depths": list(depths),
        "dtype": dtype,
        "reduce": {name: repr(function) for name, function in (reduce or {}).items()},
        "transformer": transformer,
    }
    if not keep_inputs:
        inputs.clear()  # their hashes are enough
    if paths:
        configuration["modules"] = paths
    if previews is not None:
        configuration["preview"] = previews.settings
    if sigma := smoothed_sigma(pipe):
        configuration["smooth_time"] = sigma
    scorer = Scorer(
        judge, teacher_forced=policy is None, fields=wanted, modules=paths, depths=depths, reduce=dict(reduce or {})
    )
    writer = Writer(
        path,
        fields=wanted,
        modules=paths,
        preview_steps=None if previews is None else previews.steps,
        dtype=dtype,
        coords=_coordinates(
            [sample for group in groups for sample in group], judge, depths if "probe" in wanted else None
        ),
        attrs={
            "title": "token trajectories of a diffusion transformer",
            "Conventions": "CF-1.11",
            "configuration": json.dumps(configuration, sort_keys=True),
            "versions": json.dumps({name: version(name) for name in PACKAGES}, sort_keys=True),
        },
        inputs=inputs,
        shared_steps=len(find_transformers(pipe)) > 1,
        force=force,
    )

    def listen(event: StepEvent) -> None:
        if previews is not None:
            previews.look(event)
        values = scorer(event, len(writer.batch))
        writer.put(event.step, values, modules=scorer.variables, grid=event.grid, span=event.span)

    observer = policy or FullPolicy(residual=judge.residual_site, probe_depth=judge.probe_depth, needs_probe=True)
    try:
        with (
            writer.open(),
            nullcontext() if previews is None else previews.shown(writer.put_preview, lambda: len(writer.batch)),
            apply_policy(pipe, observer, shadow=policy is not None) as handle,
            tqdm(total=sum(map(len, groups)), desc="record", bar_format=PROGRESS, disable=not progress) as bar,
        ):
            handle.record(
                listen,
                depths=depths if "probe" in wanted else (),
                modules=paths,
                latent=bool({"latent", "latent_residual"} & {*wanted}),
                transformer=transformer,
            )
            handle.listen(lambda _: bar.update(max(0.0, writer.reached - bar.n)))
            first = 0
            for call, group in zip(calls, groups, strict=True):
                batch = range(first, first + len(group))
                first = batch.stop
                if not writer.is_done(batch):
                    scorer.begin()
                    writer.begin(batch)
                    writer.end(*_outputs(pipe(**pipeline_arguments(call))))
                bar.update(first - bar.n)
                bar.set_postfix_str(writer.size_text())
    except OSError as error:
        raise RecordingError(
            f"writing to {path} failed ({error}); finished samples are kept: make room and record again to resume"
        ) from error
    return open_recording(path)


def describe(policy: AnchoredPolicy) -> dict[str, Any]:
    """Write down class and settings of a policy, as JSON could hold them."""
    settings = {name: getattr(policy, name) for name in ("seed", "distance") if hasattr(policy, name)}
    return {
        "class": type(policy).__name__,
        "family": policy.family_text,
        "settings": settings,
        "config": policy.config.to_dict(),
    }


def _judge(
    config: TAPConfig | None, policy: Policy | None, fields: tuple[str, ...], depths: tuple[int, ...]
) -> AnchoredPolicy:
    """Choose the policy whose predictors are scored, and check that it can tell what is asked for."""
    if policy is not None and config is not None:
        raise ValueError("pass config (teacher-forced) or policy (closed-loop), not both")
    if policy is not None and "latent_residual" in fields:
        raise ValueError("latent_residual is only recorded teacher-forced: leave out the policy or the field")
    judge = policy if policy is not None else TAPPolicy(config)
    if not isinstance(judge, AnchoredPolicy):
        raise TypeError(f"record needs a policy with anchors and a family (an AnchoredPolicy), got {judge!r}")
    if judge.residual_site == "latent" and "latent_residual" in fields:
        raise ValueError("with residual='latent' the field residual is the latent one: leave latent_residual out")
    if policy is not None and not judge.needs_probe:
        name = type(judge).__name__
        if "proxy_loss" in fields:
            raise ValueError(f"{name} computes no proxy loss: leave proxy_loss out of the fields")
        if "probe" in fields and judge.probe_depth in depths:
            raise ValueError(f"{name} takes no probe of block {judge.probe_depth}: leave probe out, or that depth")
    return judge


def _coordinates(
    samples: Sequence[Sample], judge: AnchoredPolicy, depths: Sequence[int] | None
) -> dict[str, Sequence[Any] | NDArray[Any] | None]:
    """Collect the coordinates that are known before anything has run; None where there is none of the name."""
    families = [label.family for label in judge.labels]
    return {
        "seed": whole_numbers([sample.seed for sample in samples]),
        "draw": [sample.draw for sample in samples],
        "draws": [sample.draws for sample in samples],
        "label": [sample.label for sample in samples],
        "order": [label.order for label in judge.labels],
        "shift": [float(label.shift) for label in judge.labels],
        "family": families if any(families) else None,  # of a union: orders and shifts do not tell its members apart
        "depth": depths,
    }


def _outputs(output: Any) -> tuple[Any, int | None]:
    """Take images (batch, y, x, band) or videos (batch, frame, y, x, band), None for what is neither; and how many."""
    found = next((getattr(output, name) for name in ("images", "frames") if hasattr(output, name)), None)
    count = None if found is None else len(found)
    found = np.asarray(found) if isinstance(found, np.ndarray | list) else None
    return found if found is not None and found.dtype.kind == "f" and found.ndim in (4, 5) else None, count
