"""Where figures find their recordings and tables, and which command makes what is missing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from tapstudy.analysis.claims.studies import Study, judged, studies_in
from tapstudy.analysis.study import load_chosen, load_table
from tapstudy.recording.store import open_recording

if TYPE_CHECKING:
    import xarray as xr

# table -> the command that makes it, of a model whose tables are in `{study}`
_CLAIMS = "tapstudy claims{model}{apart} --study {study}"
FIXED = (  # of `tapstudy ablate`: every single predictor of TAP's family, on the images of the claims
    "--seeds 31,32,33,34,35,36 --axis method=fixed0,fixed1-0,fixed1-1,fixed1-2,fixed1-3,fixed1-4,"
    "fixed2-0,fixed2-1,fixed2-2,fixed2-3,fixed2-4,tap,oracle"
)
COMMANDS = {
    "quality": _CLAIMS,
    "ranking": _CLAIMS,
    "tokens": _CLAIMS,
    "untrained": _CLAIMS,
    "propagation": _CLAIMS,
    "fixed": f"tapstudy ablate{{model}} {FIXED} --out runs/fixed && cp runs/fixed/sweep.nc {{study}}/fixed.nc",
    "frontier": "tapstudy bench frontier{model} --out {study}/frontier.nc",
    "errors": "tapstudy bench errors{model} --out {study}/errors.nc",
    "quantised": "tapstudy bench quantised{model} --out {study}/quantised.nc",
    "speed": "tapstudy bench speed --model mnist-dit,mnist-dit@32,flux-200m,flux-500m --out data/study/speed.nc",
}
MODEL = "mnist-dit"  # whose recordings and tables are not in a folder of its own
SHARED = ("speed",)  # tables that depend on no weights: all models have the same


class MissingData(FileNotFoundError):
    """A recording or table that a figure needs is not there; the message says which command makes it."""


def folder_of(model: str, parent: str | Path) -> Path:
    """Tell where what belongs to a model is, below the parent that all share."""
    return Path(parent) / ("" if model == MODEL else model)


@dataclass(frozen=True)
class Sources:
    """Where the figures find their data.

    Args:
        data: folder with `recordings`, `study` and `published`.
        model: what was recorded and studied; others than `MODEL` have folders of their own in the first two, but for
            the tables in `SHARED`.
    """

    data: Path = Path("data")
    model: str = MODEL

    @cached_property
    def scores(self) -> xr.Dataset:
        """Scores of all predictors along exact trajectories, in memory."""
        return self.recording("scores").load()

    @cached_property
    def features(self) -> xr.Dataset:
        """Probes and residuals of every step, lazily."""
        return self.recording("features")

    def table(self, name: str) -> xr.Dataset:
        """Return a table of the study.

        Raises:
            MissingData: there is none.
        """
        try:
            return load_table(self.data / "study" if name in SHARED else self._study, name)
        except FileNotFoundError as error:
            raise self._missing(error, name) from None

    @cached_property
    def chosen(self) -> dict[str, str]:
        """What was chosen on held-out images of the study, as text.

        Raises:
            MissingData: there is none.
        """
        try:
            return load_chosen(self._study)
        except FileNotFoundError as error:
            raise self._missing(error, "quality") from None

    @cached_property
    def study(self) -> Study:
        """The claims of the model, judged.

        Raises:
            MissingData: one is not there.
        """
        try:
            return judged(self._study)
        except FileNotFoundError as error:
            raise self._missing(error, "quality") from None

    @cached_property
    def studies(self) -> list[Study]:
        """All studies of claims that there are, that of the model first.

        Raises:
            MissingData: the model has none, or another one lacks a table.
        """
        first = self.study
        try:
            return [first, *(judged(folder) for folder in studies_in(self.data / "study") if folder != self._study)]
        except FileNotFoundError as error:
            raise MissingData(f"{error}: make that study anew with `tapstudy claims --study`, or remove it") from None

    def recording(self, name: str) -> xr.Dataset:
        """Return a recording, lazily.

        Raises:
            MissingData: there is none.
        """
        path = folder_of(self.model, self.data / "recordings") / f"{name}.zarr"
        if not path.is_dir():
            how = f"{path.parent} --bundled"
            if name == "features" and self.model != MODEL:
                how = f"{path} --fields probe,residual,image --stored-as float16"
            raise MissingData(f"no recording {path}: make it with `tapstudy record {how}{self._option}`")
        return open_recording(path)

    @property
    def _study(self) -> Path:
        return folder_of(self.model, self.data / "study")

    @property
    def _option(self) -> str:
        return "" if self.model == MODEL else f" --model {self.model}"

    def _missing(self, error: Exception, table: str) -> MissingData:
        apart = "" if self.model == MODEL else f" --work claims-{self.model} --out claims-{self.model}.md"
        command = COMMANDS[table].format(model=self._option, apart=apart, study=self._study)
        return MissingData(f"{error}: make it with `{command}`")
