"""Fit the schedule of full steps, and what predicts between them, to a pipeline and prompts of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from tapstudy.analysis.schedules import even_mask, masks, start_dense_mask
from tapstudy.analysis.stats import EQUAL_IMAGES
from tapstudy.bench.conditions import Condition
from tapstudy.bench.engine import Setting, kept, one_at_a_time, run_all, spread
from tapstudy.bench.fit.held_out import FIXED
from tapstudy.bench.fit.masks import best_window_mask
from tapstudy.bench.fit.tuning import Tuner, best_of
from tapstudy.bench.image_error import psnr, unit_images
from tapstudy.bench.image_set import ImageSet, pipe_of, weights_fingerprint
from tapstudy.bench.results import Results, results_in, short_hash
from tapstudy.instrument.belongs import weights_digits
from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.handle import apply_policy, find_transformers
from tapstudy.policies.base import ResidualSite
from tapstudy.policies.calibrated import best_rows, fit_rows
from tapstudy.policies.ertacache import ErtaCalibration, calibrate_erta
from tapstudy.policies.fitted_schedule import FittedSchedule
from tapstudy.policies.full import FullPolicy
from tapstudy.policies.magcache import magnitude_ratios
from tapstudy.predictors.taylor import TaylorFamily

SITES: tuple[ResidualSite, ...] = ("hidden", "output")
ANCHORS = 3
CHUNK = 1 << 16  # values of a feature that are multiplied at a time, in double precision


@dataclass
class Trajectory:
    """Hold what the fit reads of one image's full run.

    Attributes:
        grams: inner products of all pairs of steps as shares of the mean square, by site, (step, step), mean over
            guidance branches.
        lengths: of the solver's steps, (step,).
        ratios: magnitude ratios of the hidden residual.
        latents, outputs: of every step, (branches, token, channel), on the CPU.
    """

    grams: dict[ResidualSite, np.ndarray[Any, np.dtype[np.float64]]]
    lengths: list[float]
    ratios: list[float]
    latents: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def to_dataset(self) -> xr.Dataset:
        """Return all of it, features in single precision."""
        values = {f"gram_{site}": (("step", "other"), gram) for site, gram in self.grams.items()}
        return xr.Dataset(
            {
                **values,
                "length": ("step", self.lengths),
                "ratio": ("step", self.ratios),
                "latent": (("step", "branch", "token", "channel"), torch.stack(self.latents).float().numpy()),
                "output": (("step", "branch", "out_token", "out_channel"), torch.stack(self.outputs).float().numpy()),
            }
        )

    @classmethod
    def of_dataset(cls, found: xr.Dataset) -> Trajectory:
        """Read what `to_dataset` made."""
        return cls(
            {site: found[f"gram_{site}"].values for site in SITES},
            found["length"].values.tolist(),
            found["ratio"].values.tolist(),
            list(torch.from_numpy(found["latent"].values)),
            list(torch.from_numpy(found["output"].values)),
        )


def fit_schedule(
    pipe: Any,
    prompts: Sequence[Condition | Mapping[str, Any]],
    full_passes: int = 8,
    *,
    steps: int = 50,
    guidance: float | None = None,
    seed: int = 0,
    tuning: int | None = None,
    sigmas: Sequence[float] = (),
    folder: str | Path | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> FittedSchedule:
    """Find which steps should run in full on a pipeline, and whether TAP, fitted rows or one predictor should follow.

    Trajectories of the first prompts are recorded in full; of them only inner products of steps are kept. They give
    masks (dynamic programs over the error that every window adds to the solver's state) and, on every mask, least
    squares weights of the last three anchors for the hidden residual and for the output. Every mask with TAP and with
    either weights then samples the last prompts, and on the mask that ends closest to the full images so does every
    single predictor of TAP's family; what is closest wins.

    Args:
        pipe: a pipeline with one supported transformer; or its folder or hub id.
        prompts: prompts, labels, or mappings of arguments of the call; at least two, none of which anything is
            judged on later.
        full_passes: number of full steps.
        steps: T, of the runs that it is for.
        guidance: scale; None is the pipeline's usual one.
        seed: of the noise.
        tuning: so many of the prompts, the last ones, are chosen on; half of them by default.
        sigmas: widths of `smooth_time` to try on what won; each costs one more accelerated run a tuning prompt.
        folder: keeps the results; the same call resumes. None keeps nothing.
        scheduler: address of a `dask.distributed` scheduler whose workers record and sample, each with a pipeline of
            its own (see `analysis.cluster`), which they load: `pipe` must be a folder or a hub id. None does it here.
        progress: show bars.

    Returns:
        The winner; `tapstudy.tap(pipe, schedule=...)` applies it, `save` keeps it. It also holds calibrations of
        MagCache and ERTACache from the same recording.

    Raises:
        TypeError: no supported transformer, or several.
        ValueError: too few prompts, numbers that do not fit, a run that the model began or ended elsewhere.

    Cost in full passes: T an image for the first prompts; for every tuning prompt T, and about `full_passes` for each
    candidate, three a mask and 11 on the best one: 35 of them at T = 50 and 8 passes take 280, as 6 images do. Memory:
    the hidden residuals of one image at all steps, in the model's precision, on the CPU (FLUX at 1024 pixels: 1.3 GB
    a branch in bfloat16).
    """
    images = ImageSet.asked(pipe, prompts, seeds=(seed,), steps=steps, guidance=guidance)
    tuning = len(images) // 2 if tuning is None else tuning
    if not 1 <= tuning < len(images):
        raise ValueError(
            f"fit_schedule needs a prompt to fit to and another to choose on: got {len(images)} prompts, {tuning} of "
            "them to choose on"
        )
    if not 2 <= full_passes < steps:
        raise ValueError(f"full_passes must be at least 2 and below the {steps} steps, got {full_passes}")
    if wrong := [sigma for sigma in sigmas if not (np.isfinite(sigma) and sigma >= 0)]:
        raise ValueError(f"sigmas must be finite numbers of at least 0, got {', '.join(map(str, wrong))}")
    kind = type(pipe_of(images.model)).__name__
    if len(find_transformers(pipe_of(images.model))) > 1:
        raise TypeError(f"fit_schedule takes pipelines with one transformer, {kind} has several")
    with results_in(folder) as results:
        told = {**images.key, "weights": weights_fingerprint(images.model), "model": kind}
        results.belongs_to(told | {"full_passes": full_passes, "tuning": tuning})
        return _Search(kind, images, tuning, full_passes, results, scheduler, progress).run(sigmas)


@dataclass
class _Search:
    kind: str
    images: ImageSet
    tuning: int
    passes: int
    results: Results
    scheduler: str | None
    progress: bool
    spent: float = 0.0  # full passes

    def run(self, sigmas: Sequence[float]) -> FittedSchedule:
        steps, fitted_to = self.images.steps, self.images[: -self.tuning]
        paths = self._trajectories(fitted_to)
        self.spent += steps * len(fitted_to)
        grams = {site: np.mean([path.grams[site] for path in paths], axis=0) for site in SITES}
        candidates = self._candidates(grams, np.array(paths[0].lengths))
        plain = Setting.plain(steps)
        self._on_workers([plain, *map(Setting.fitted, candidates.values())])
        exact = self._images(plain)
        self.spent += steps * self.tuning
        quality = self._judged(candidates, exact)
        singles = self._singles(best_of(quality), candidates, grams["hidden"])
        self._on_workers([*map(Setting.fitted, singles.values())])
        quality |= self._judged(singles, exact)
        name = best_of(quality)
        best = (candidates | singles)[name]
        sigma, at = 0.0, max(quality.values())
        for width in sigmas:
            value = self._quality(best, exact, width)
            quality[f"{name}, sigma {width:g}"] = value
            if value > at:
                sigma, at = float(width), value
        ratios = tuple(float(value) for value in np.mean([path.ratios for path in paths], axis=0))
        return FittedSchedule(
            pipeline=self.kind, weights=weights_digits(pipe_of(self.images.model)), num_steps=steps,
            full_steps=best.full_steps, rows=best.rows,
            residual=best.residual, smooth_time=sigma, quality=quality, passes_spent=round(self.spent, 1),
            magnitude_ratios=ratios, erta=self._erta(paths),
        )  # fmt: skip

    def _trajectories(self, images: ImageSet) -> list[Trajectory]:
        """Record every image, each once."""
        parts = images.batches(1)
        if self.scheduler is not None:
            _refuse(
                spread(
                    parts, _file, _recorded, self.results, scheduler=self.scheduler, progress=self.progress,
                    unit="recording",
                )
            )  # fmt: skip
        bar = tqdm(parts, desc="record", unit="image", disable=not self.progress)
        return [Trajectory.of_dataset(self.results.dataset(*_file(part), partial(_recorded, part))) for part in bar]

    def _on_workers(self, settings: Sequence[Setting]) -> None:
        """Let workers sample the last prompts, if there are any: what follows finds the images."""
        if self.scheduler is not None:
            jobs = [(self.images[-self.tuning :], setting) for setting in settings]
            _refuse(run_all(jobs, self.results, scheduler=self.scheduler, progress=self.progress))

    def _candidates(self, grams: Mapping[ResidualSite, Any], lengths: Any) -> dict[str, FittedSchedule]:
        steps = self.images.steps
        named = {f"S{name[1:]}": mask for name, mask in masks(steps, self.passes).items() if name.startswith("S(")}
        named |= {"even": even_mask(steps, self.passes), "start dense": start_dense_mask(steps, self.passes)}
        order1 = TaylorFamily(orders=(1,), shifts=(0,))
        for site in SITES:
            for kind, family in (("rows", None), ("order 1", order1)):
                found = best_window_mask(grams[site], lengths, self.passes, family=family)
                named[f"windows of {kind}, {site}"] = tuple(int(step) for step in found)
        distinct = {mask: name for name, mask in reversed(named.items())}  # the first name of equal ones
        candidates: dict[str, FittedSchedule] = {}
        for mask, name in reversed(distinct.items()):
            on = partial(FittedSchedule, pipeline=self.kind, num_steps=steps, full_steps=mask)
            candidates[f"{name}: TAP"] = on()
            for site in SITES:
                rows = fit_rows(torch.from_numpy(grams[site]), mask, num_anchors=ANCHORS)
                candidates[f"{name}: rows, {site}"] = on(rows=rows, residual=site)
        return candidates

    def _singles(self, name: str, candidates: Mapping[str, FittedSchedule], gram: Any) -> dict[str, FittedSchedule]:
        """Return every single predictor of TAP's family on the full steps of a candidate."""
        on, found = candidates[name], {}
        for order, shift in FIXED:
            if order < self.passes:
                rows = best_rows(torch.from_numpy(gram), on.full_steps, TaylorFamily((order,), (shift,)))
                title = f"{name.split(':')[0]}: order {order}" + (f", horizon k - {shift}" if shift else "")
                found[title] = replace(on, rows=rows, residual="hidden")
        return found

    def _judged(self, candidates: Mapping[str, FittedSchedule], exact: Tensor) -> dict[str, float]:
        bar = tqdm(candidates.items(), desc="choose", unit="candidate", disable=not self.progress)
        return {name: self._quality(found, exact) for name, found in bar}

    def _images(self, setting: Setting) -> Tensor:
        return unit_images(kept((self.images[-self.tuning :], setting), self.results, progress=self.progress))

    def _quality(self, schedule: FittedSchedule, exact: Tensor, sigma: float = 0.0) -> float:
        """Return the mean PSNR to the full images, at most 200 for equal ones."""
        setting = Setting.fitted(replace(schedule, smooth_time=sigma))
        self._on_workers([setting])
        self.spent += len(schedule.full_steps) * self.tuning
        return float(psnr(self._images(setting), exact, data_range=1.0).clamp(max=EQUAL_IMAGES).mean())

    def _erta(self, paths: Sequence[Trajectory]) -> ErtaCalibration | None:
        latents, outputs = (
            [torch.cat(step) for step in zip(*(getattr(path, name) for path in paths), strict=True)]
            for name in ("latents", "outputs")
        )
        if latents[0].shape != outputs[0].shape:
            return None

        def count(threshold: float) -> float:
            return len(calibrate_erta(latents, outputs, threshold).full_steps)

        return calibrate_erta(latents, outputs, Tuner(count, trials=20, tolerance=0).threshold(self.passes))


def _file(image: ImageSet) -> tuple[str, dict[str, Any]]:
    key = {**image.key, "weights": weights_fingerprint(image.model)}
    return f"recorded/{short_hash(key)}", key


def _recorded(image: ImageSet) -> xr.Dataset:
    with one_at_a_time:
        found = trajectory_of(pipe_of(image.model), image).to_dataset()
    return found.assign_attrs(weights=weights_fingerprint(image.model))


def _refuse(failures: Mapping[Any, str]) -> None:
    """Raise RuntimeError where something failed on a worker: no schedule is fitted to the rest."""
    if failures:
        first = next(iter(failures.values()))
        raise RuntimeError(
            f"fit_schedule: {len(failures)} runs failed on the workers, the first for this reason: {first}"
        )


def trajectory_of(pipe: Any, image: ImageSet) -> Trajectory:
    """Sample one image in full and keep what the fit reads.

    Raises:
        ValueError: the model did not see every step once in every guidance branch.
    """
    seen: dict[str, list[tuple[Tensor, Tensor | None, Tensor | None]]] = {}
    lengths: list[float] = []

    def listen(event: StepEvent) -> None:
        assert event.residual is not None
        kept_now = (_copy(event.residual), _copied(event.latent), _copied(event.latent_residual))
        seen.setdefault(event.context, []).append(kept_now)
        if not lengths and event.span is not None:
            levels = event.span.timesteps if event.span.sigmas is None else event.span.sigmas
            values = levels[: image.steps].double().cpu().numpy()
            lengths.extend(np.diff(values / max(1.0, float(values.max())), append=0.0).tolist())

    with torch.no_grad(), apply_policy(pipe, FullPolicy(residual="hidden")) as handle:
        handle.record(listen, latent=True)
        image.sample(pipe)
    counts = {name: len(passes) for name, passes in seen.items()}
    if set(counts.values()) != {image.steps} or len(lengths) != image.steps:
        raise ValueError(
            f"the transformer of {type(pipe).__name__} should see {image.steps} steps in every guidance branch, got "
            f"{counts}: a schedule is fitted to runs from the first step to the last"
        )
    hidden, ratios, latents, outputs = [], [], [], []
    for passes in seen.values():
        residuals = [residual for residual, _, _ in passes]
        hidden.append(gram_of(residuals))
        ratios.append(magnitude_ratios(residuals))
        latents.append([latent if latent is not None else residual for _, latent, residual in passes])
        outputs.append([
            change + latent if latent is not None and latent.shape == change.shape else change
            for _, latent, change in passes if change is not None
        ])  # fmt: skip
    grams: dict[ResidualSite, Any] = {
        "hidden": np.mean(hidden, axis=0), "output": np.mean([gram_of(path) for path in outputs], axis=0)
    }  # fmt: skip
    together = [[torch.cat(step) for step in zip(*branches, strict=True)] for branches in (latents, outputs)]
    return Trajectory(grams, lengths, np.mean(ratios, axis=0).tolist(), *together)


def _copy(value: Tensor) -> Tensor:
    return value.detach().cpu().clone()


def _copied(value: Tensor | None) -> Tensor | None:
    return None if value is None else _copy(value)


def gram_of(features: Sequence[Tensor]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the inner products of all pairs of steps over their mean square, (step, step), summed in float64."""
    flat = [feature.reshape(-1) for feature in features]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, len(flat[0]), CHUNK):
        part = torch.stack([values[start : start + CHUNK].double() for values in flat])
        total += part @ part.T
    found: np.ndarray[Any, np.dtype[np.float64]] = (total / total.diagonal().mean()).numpy()
    return found
