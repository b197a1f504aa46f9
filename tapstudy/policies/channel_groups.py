"""Give every group of channels its own predictor, found once, after HyCa (arXiv 2510.04188, ICLR 2026).

Approximate: the paper's pool of ODE solvers, its descriptors and its number of groups were not found in full. Here the
pool is any family of linear predictors, and channels are grouped by how large their first and second differences are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tapstudy.core.clusters import k_means, nearest_centre
from tapstudy.core.transfer import onto
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import Prediction
from tapstudy.policies.config import TAPConfig
from tapstudy.predictors.family import Family, candidates


class ChannelGroupsPolicy(AnchoredPolicy):
    """Predict channel c, on the schedule of `config`, by the member `members[groups[c]]` of the family, at every token.

    TAP chooses per token and for all channels, this per channel and for all tokens. Cost of a skip step: no block, one
    pass over the anchors. Memory: the anchors' residuals.

    Args:
        groups: group of every channel, (channel,), integers from 0: see `group_channels`.
        members: index into the family for every group: see `best_members`.

    Raises:
        ValueError: a group without a member, or a member outside the family.
    """

    def __init__(
        self, groups: Tensor, members: Sequence[int], *, config: TAPConfig | None = None, family: Family | None = None
    ) -> None:
        super().__init__(config, family=family)
        if int(groups.max()) >= len(members) or not all(0 <= member < len(self.labels) for member in members):
            raise ValueError(
                f"ChannelGroupsPolicy: {int(groups.max()) + 1} groups need as many members, each below "
                f"{len(self.labels)}, got {list(members)}"
            )
        self.groups, self.members = groups, tuple(members)

    def predict(self, step: int, probe: Tensor | None, truth: Tensor | None = None) -> Prediction:
        found, anchors = self.candidates(step), self.anchors.residuals
        rows = found.weights[found.inverse[list(self.members)]][self.groups.cpu()]  # (D, J)
        rows = onto(rows, anchors[0].device, torch.promote_types(anchors[0].dtype, torch.float32))
        residual = anchors[0] * rows[:, 0]  # (B, N, D)
        for anchor, row in zip(anchors[1:], rows.T[1:], strict=True):
            residual.addcmul_(anchor.to(rows.dtype), row)
        return Prediction(residual)


def group_channels(features: Sequence[Tensor], count: int, *, seed: int = 0) -> Tensor:
    """Cluster channels by k-means on the logarithms of |F|, |first difference| and |second difference|.

    Args:
        features: of consecutive steps of a full run, (batch, token, channel) each; at least three.
        count: number of groups.

    Returns:
        Group of every channel, (channel,), numbered by increasing |second difference|.

    Raises:
        ValueError: fewer than three steps, or fewer channels than groups.
    """
    if len(features) < 3 or count > features[0].shape[-1] or count < 1:
        raise ValueError(f"group_channels needs three steps and at least as many channels as groups, got "
                         f"{len(features)} steps and {features[0].shape[-1]} channels for {count} groups")  # fmt: skip
    path = torch.stack([feature.detach().double().flatten(0, -2) for feature in features])  # (T, B * N, D)
    sizes = [torch.diff(path, n=n, dim=0).square().mean(dim=(0, 1)).sqrt() for n in range(3)]  # (D,) each
    points = torch.stack(sizes, dim=1).clamp(min=1e-30).log()  # (D, 3)
    points = (points - points.mean(dim=0)) / points.std(dim=0, correction=0).clamp(min=1e-12)
    groups = nearest_centre(points.cpu(), k_means(points, count, seed=seed))
    means = torch.stack([points[groups == g, 2].mean() for g in range(count)]).nan_to_num(torch.inf)
    return means.argsort().argsort()[groups]


def best_members(features: Sequence[Tensor], groups: Tensor, *, config: TAPConfig | None = None) -> tuple[int, ...]:
    """Find for every group the member of `config`'s family of least squared error at the skip steps of its schedule.

    Args:
        features: of every step of a full run, (batch, token, channel) each.
        groups: (channel,).
    """
    config = config or TAPConfig()
    family = config.family
    errors = torch.zeros(len(family.labels), len(groups), dtype=torch.float64)  # (P, D)
    anchors: list[int] = []
    for step, actual in enumerate(features):
        if config.schedule.is_full(step):
            anchors = [step, *anchors][: family.num_anchors]
            continue
        found = candidates(family, anchors, step)
        history = torch.stack([features[a].detach().double() for a in anchors])  # (J, B, N, D)
        for p, row in enumerate(found.weights[found.inverse].to(history)):  # (J,)
            errors[p] += (torch.tensordot(row, history, dims=1) - actual.double()).square().sum(dim=(0, 1)).cpu()
    count = int(groups.max()) + 1
    sums = torch.zeros(len(errors), count, dtype=torch.float64).index_add_(1, groups.cpu(), errors)  # (P, C)
    return tuple(sums.argmin(dim=0).tolist())
