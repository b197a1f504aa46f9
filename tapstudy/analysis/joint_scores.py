"""The scores of many settings on the same features, summed up as they are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tapstudy.analysis.features import Grid
from tapstudy.analysis.teacher_forced import Array, Trajectories, Windows, one_torch_thread, windows_of
from tapstudy.analysis.window_scores import WindowScores
from tapstudy.core.scoring import Distance, select
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

    @property
    def probe(self) -> str:
        """The variable of its probe."""
        return f"probe {self.config.probe_depth}"


@dataclass(frozen=True)
class JointScores:
    """Sums over the `wanted` skip steps of means over tokens, for every job, from features at the steps `held`.

    Jobs on one schedule share the products of a window's features, whatever their distances, and their losses: those of
    all their distinct predictors are computed together, once per probe and distance and once per residual.
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
            at = {name: Trajectories(array, self.held) for name, array in zip(self.names, features, strict=True)}
            count = at[self.names[0]].count
            metrics = {name: torch.zeros(count, len(self.jobs), dtype=torch.float64) for name in METRICS}
            fixed = torch.full((count, len(self.jobs), self.predictors), torch.nan, dtype=torch.float64)
            for index, job in enumerate(self.jobs):
                fixed[:, index, list(job.labels)] = 0
            for full in dict.fromkeys(job.full for job in self.jobs):
                jobs = {index: job for index, job in enumerate(self.jobs) if job.full == full}
                num_anchors = max(job.config.family.num_anchors for job in jobs.values())
                for windows in windows_of(self.wanted, full, num_anchors, size=at[self.names[0]].windows_at_once):
                    scores = {
                        (name, dtype): WindowScores(at[name], windows, history_dtype=dtype)
                        for job in jobs.values()
                        for name, dtype in ((job.probe, job.config.probe_dtype), (job.site, job.config.history_dtype))
                    }
                    for step in range(len(windows.steps[0])):
                        self._add(windows, step, jobs, scores=scores, metrics=metrics, fixed=fixed)
        return tuple(value.reshape(*leading, *value.shape[1:]).numpy() for value in (*metrics.values(), fixed))

    def _add(
        self,
        windows: Windows,
        step: int,
        jobs: Mapping[int, Job],
        *,
        scores: Mapping[tuple[str, torch.dtype | None], WindowScores],
        metrics: Mapping[str, Tensor],
        fixed: Tensor,
    ) -> None:
        found, columns, weights = _all_candidates(windows, step, jobs)
        losses: dict[tuple[str, torch.dtype | None, Distance], Tensor] = {}
        count, batch = fixed.shape[0], fixed.shape[0] * len(windows.steps)

        def of(name: str, dtype: torch.dtype | None, distance: Distance) -> Tensor:
            """(all, T)"""
            asked = name, dtype, distance
            if asked not in losses:
                losses[asked] = scores[name, dtype].losses(weights[None], distance, start=step)[0]
            return losses[asked]

        for index, job in jobs.items():
            config = job.config
            proxy, error = (
                values.index_select(0, columns[index]).unflatten(-1, (batch, -1)).movedim(0, -1)  # (B * W, N, distinct)
                for values in (
                    of(job.probe, config.probe_dtype, config.distance),
                    of(job.site, config.history_dtype, "l2"),
                )
            )
            choice = select(proxy, granularity=config.granularity, grid=job.grid, region_size=config.region_size)
            best = error.min(dim=-1, keepdim=True).indices  # (B * W, N, 1)
            values = {
                "true_error": error.gather(-1, choice[..., None]).mean(dim=(1, 2)),  # (B * W,)
                "oracle_true_error": error.gather(-1, best).mean(dim=(1, 2)),
                "random_true_error": error.mean(dim=(1, 2)),
                "top1": (choice == best[..., 0]).double().mean(dim=1),
            }
            for name, value in values.items():
                metrics[name][:, index] += value.view(count, -1).sum(dim=1)
            means = error.mean(dim=1).index_select(-1, found[index].inverse)  # (B * W, P)
            fixed[:, index, list(job.labels)] += means.unflatten(0, (count, -1)).sum(dim=1)


def _all_candidates(
    windows: Windows, step: int, jobs: Mapping[int, Job]
) -> tuple[dict[int, Candidates], dict[int, Tensor], Tensor]:
    """Every job's candidates, their columns among the distinct ones of all jobs, and the weights of those, (all, J)."""
    anchors, rows, lengths = windows.anchors[0], [], {}
    found = {}
    for index, job in jobs.items():
        family = job.config.family
        found[index] = candidates(family, anchors[: family.num_anchors], windows.steps[0][step])
        padding = (0.0,) * (len(anchors) - found[index].weights.shape[1])  # older anchors that this family ignores
        rows += [(*row, *padding) for row in found[index].weights.tolist()]
        lengths[index] = len(found[index].first)
    first, inverse = distinct_rows(rows)
    parts = torch.tensor(inverse).split(list(lengths.values()))
    weights = torch.tensor([rows[i] for i in first], dtype=torch.float64)
    return found, dict(zip(lengths, parts, strict=True)), weights
