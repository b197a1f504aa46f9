"""The tables that claims are judged by. They name runs by what they are, such as "tap N=8" or "order1 even"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from tapstudy.analysis.require import require
from tapstudy.analysis.stats import EQUAL_IMAGES

Array = NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Tell what was measured on the test images.

    Attributes:
        quality: `psnr` in dB, `flops` and `full_passes` (cell, sample), along accelerated runs; NaN for images a cell
            does not have.
        ranking: along exact trajectories, see `measure.ranking_table`.
        tokens: see `measure.token_table`, (sample).
        untrained: see `measure.untrained_table`, with random weights of several seeds, (weights, ranker, sample).
        propagation: `path_length`, `coherence`, `amplification` and `deviation`, as log ratios to "order1", (policy,
            sample).
        chosen: what was chosen on held-out images, as text.

    Of `quality` and `ranking` the images are told by `seed` and `label` on sample.
    """

    quality: xr.Dataset
    ranking: xr.Dataset
    tokens: xr.Dataset
    untrained: xr.Dataset
    propagation: xr.Dataset
    chosen: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        table = ("cell", "sample")
        require(
            self.quality,
            "claims (quality)",
            psnr=table,
            flops=table,
            full_passes=table,
            seed=("sample",),
            label=("sample",),
        )
        ranked = dict.fromkeys(("spearman", "top1", "normalised_regret", "least_error"), table)
        require(self.ranking, "claims (ranking)", **ranked, seed=("sample",), label=("sample",))
        require(self.untrained, "claims (untrained)", spearman=("weights", "ranker", "sample"))
        require(self.propagation, "claims (propagation)", path_length=("policy",), deviation=("policy",))
        for name in ("quality", "ranking"):
            object.__setattr__(self, name, getattr(self, name).transpose("cell", "sample", ...))

    def mix(self, weights: Mapping[str, float], measure: str = "psnr") -> Array:
        """Add up what runs reached, weighted, on the images that all of them have, (image,)."""
        return np.asarray(
            sum(w * row for w, row in zip(weights.values(), self.rows(list(weights), measure), strict=True))
        )

    def rows(self, cells: Sequence[str], measure: str = "psnr") -> list[Array]:
        """List a measure of the runs, or of the ranking table, on the images that all of these have, (image,) each."""
        table = (self.quality if measure in self.quality else self.ranking)[measure]
        found = np.stack([_row(table, cell) for cell in cells])  # (cell, image)
        if measure == "psnr":
            found = found.clip(max=EQUAL_IMAGES)
        return list(found[:, np.isfinite(found).all(axis=0)])

    def cells(self, prefix: str, *, ranked: bool = False) -> list[str]:
        """List the names that begin so, of runs or of ranked settings; raise ValueError if there are none."""
        names = (self.ranking if ranked else self.quality)["cell"].values.tolist()
        found = [name for name in names if name.startswith(prefix)]
        if not found:
            raise ValueError(f"claims: no run {prefix!r}..: there are {names}")
        return found

    def on_ranked(self, cells: Sequence[str]) -> NDArray[np.floating]:
        """Return PSNR of cells on the images of the ranking table, (cell, image)."""
        known = _images(self.quality)
        missing = [image for image in _images(self.ranking) if image not in known]
        if missing:
            raise ValueError(f"claims: the ranked images {missing} were not run: record those of the closed-loop runs")
        columns = [known.index(image) for image in _images(self.ranking)]
        return np.stack([_row(self.quality["psnr"], cell)[columns] for cell in cells])


def _row(table: xr.DataArray, cell: str) -> Array:
    (found,) = np.nonzero(table["cell"].values == cell)
    if not len(found):
        raise ValueError(f"claims: no run {cell!r} in {table.name}: there are {table['cell'].values.tolist()}")
    return np.asarray(table.values[found[0]], dtype=np.float64)


def _images(table: xr.Dataset) -> list[tuple[int, str]]:
    return [(int(seed), str(label)) for seed, label in zip(table["seed"].values, table["label"].values, strict=True)]
