"""The scores of many settings on the same features, summed up as they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tapstudy.analysis.features import Grid
from tapstudy.analysis.teacher_forced import Array, StepBatch, Trajectory, one_torch_thread, step_batches
from tapstudy.core.scoring import select
from tapstudy.core.weights import distinct_rows
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Candidates, candidates

METRICS = {
    "true_error": "true error of the chosen predictor",
    "oracle_true_error": "true error of every token's best predictor",
    "random_true_error": "true error of a random predictor (mean over the distinct ones)",
    "top1": "share of tokens that take their best predictor",
}


@dataclass(frozen=True)
class Job:
    """One setting: its full steps, the variable of its residual, and where its predictors are among all."""

    config: TAPConfig
    full: tuple[int, ...]
    site: str
    grid: Grid | None
    labels: tuple[int, ...]


@dataclass(frozen=True)
class JointScores:
    """Sums over the `wanted` skip steps of means over tokens, for every job, from features at the steps `held`.

    Jobs on one schedule share their losses: those of all their distinct predictors are computed together, once per
    probe and distance and once per residual.
    """

    jobs: tuple[Job, ...]
    names: tuple[str, ...]
    held: tuple[int, ...]
    wanted: tuple[int, ...]
    predictors: int

    def __call__(self, *features: Array) -> tuple[Array, ...]:
        """(..., held, token, channel) each -> (..., setting) for every metric, and (..., setting, predictor)."""
        leading = features[0].shape[:-3]
        with one_torch_thread(), torch.inference_mode():
            at = {name: Trajectory(array, self.held) for name, array in zip(self.names, features, strict=True)}
            count = at[self.names[0]].count
            metrics = {name: torch.zeros(count, len(self.jobs), dtype=torch.float64) for name in METRICS}
            fixed = torch.full((count, len(self.jobs), self.predictors), torch.nan, dtype=torch.float64)
            for index, job in enumerate(self.jobs):
                fixed[:, index, list(job.labels)] = 0
            for full in dict.fromkeys(job.full for job in self.jobs):
                jobs = {index: job for index, job in enumerate(self.jobs) if job.full == full}
                num_anchors = max(job.config.family.num_anchors for job in jobs.values())
                for batch in step_batches(self.wanted, full, num_anchors, size=at[self.names[0]].batch_size):
                    self._add(batch, jobs, at, metrics, fixed)
        return tuple(value.reshape(*leading, *value.shape[1:]).numpy() for value in (*metrics.values(), fixed))

    def _add(
        self,
        batch: StepBatch,
        jobs: Mapping[int, Job],
        at: Mapping[str, Trajectory],
        metrics: Mapping[str, Tensor],
        fixed: Tensor,
    ) -> None:
        found, columns, weights = _all_candidates(batch, jobs)
        proxies: dict[tuple[str, str], Tensor] = {}
        errors: dict[tuple[str, torch.dtype], Tensor] = {}
        count = fixed.shape[0]
        for index, job in jobs.items():
            config, probe = job.config, f"probe {job.config.probe_depth}"
            if (probe, config.distance) not in proxies:
                proxies[probe, config.distance] = at[probe].losses(batch, weights, config.distance)  # (B * S, N, all)
            if (job.site, config.history_dtype) not in errors:
                errors[job.site, config.history_dtype] = at[job.site].losses(
                    batch, weights, "l2", history_dtype=config.history_dtype
                )
            proxy = proxies[probe, config.distance].index_select(-1, columns[index])  # (B * S, N, distinct)
            error = errors[job.site, config.history_dtype].index_select(-1, columns[index])
            choice = select(proxy, granularity=config.granularity, grid=job.grid, region_size=config.region_size)
            best = error.argmin(dim=-1, keepdim=True)  # (B * S, N, 1)
            values = {
                "true_error": error.gather(-1, choice[..., None]).mean(dim=(1, 2)),  # (B * S,)
                "oracle_true_error": error.gather(-1, best).mean(dim=(1, 2)),
                "random_true_error": error.mean(dim=(1, 2)),
                "top1": (choice == best[..., 0]).double().mean(dim=1),
            }
            for name, value in values.items():
                metrics[name][:, index] += value.view(count, -1).sum(dim=1)
            means = error.mean(dim=1).index_select(-1, found[index].inverse)  # (B * S, P)
            fixed[:, index, list(job.labels)] += means.unflatten(0, (count, -1)).sum(dim=1)


def _all_candidates(
    batch: StepBatch, jobs: Mapping[int, Job]
) -> tuple[dict[int, Candidates], dict[int, Tensor], Tensor]:
    """Every job's candidates, their columns among the distinct ones of all jobs, and the weights of those, (all, J)."""
    anchors, rows, lengths = batch.newest_first, [], {}
    found = {}
    for index, job in jobs.items():
        family = job.config.family
        found[index] = candidates(family, anchors[: family.num_anchors], batch.steps[0])
        padding = (0.0,) * (len(anchors) - found[index].weights.shape[1])  # older anchors that this family ignores
        rows += [(*row, *padding) for row in found[index].weights.tolist()]
        lengths[index] = len(found[index].first)
    first, inverse = distinct_rows(rows)
    parts = torch.tensor(inverse).split(list(lengths.values()))
    weights = torch.tensor([rows[i] for i in first], dtype=torch.float64)
    return found, dict(zip(lengths, parts, strict=True)), weights
