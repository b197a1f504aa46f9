"""A schedule that was fitted to one pipeline, as a small file: full steps, what predicts between them, the clock."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tapstudy.core.weights import Row
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.policies.base import ResidualSite
from tapstudy.policies.calibrated import CalibratedPolicy
from tapstudy.policies.config import TAPConfig
from tapstudy.policies.ertacache import ErtaCalibration
from tapstudy.policies.tap import TAPPolicy

FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class FittedSchedule:
    """Hold what `tapstudy.fit_schedule` found.

    Attributes:
        pipeline: class of the pipeline; others are refused.
        weights: digits of its transformer's weights, of which others are warned; "" where they were not known.
        num_steps: T of the runs that it is for; others are refused.
        full_steps: that run in full.
        rows: for every skip step the weights of the newest anchors, newest first; none: TAP chooses.
        residual: what the rows are applied to.
        smooth_time: sigma of the low-pass of the clock under which it is best.
        quality: PSNR in dB of every candidate on the prompts that were chosen on, by name.
        passes_spent: full passes that the search took.
        magnitude_ratios: for `MagCachePolicy`, of the same recording.
        erta: for `ERTACachePolicy`, with as many full steps, about; None where the output is not of the latent's shape.
    """

    pipeline: str
    num_steps: int
    full_steps: tuple[int, ...]
    weights: str = ""
    rows: Mapping[int, Row] = field(default_factory=dict)
    residual: ResidualSite = "hidden"
    smooth_time: float = 0.0
    quality: Mapping[str, float] = field(default_factory=dict)
    passes_spent: float = 0.0
    magnitude_ratios: tuple[float, ...] = ()
    erta: ErtaCalibration | None = None

    def config(self, **settings: Any) -> TAPConfig:
        """Return TAP's configuration on these full steps, with further settings."""
        fixed = {"full_steps": self.full_steps, "num_steps": self.num_steps}
        return TAPConfig.of({"orders": tuple(range(min(3, len(self.full_steps)))), **settings, **fixed})

    def policy(self) -> AnchoredPolicy:
        """Return what was found best: rows of weights, be they fitted or those of one predictor, or TAP."""
        if not self.rows:
            return TAPPolicy(self.config())
        return CalibratedPolicy(self.rows, TAPConfig(residual=self.residual, num_steps=self.num_steps))

    def save(self, path: str | Path) -> Path:
        """Write it as JSON."""
        path, content = Path(path).expanduser(), asdict(self)
        if self.erta is not None:
            content["erta"]["full_steps"] = sorted(self.erta.full_steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"format": FORMAT, **content}, indent=1) + "\n")
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: no file there.
            ValueError: it holds something else, or of another format.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no fitted schedule at {path}: tapstudy.fit_schedule makes one")
        try:
            content = json.loads(path.read_text())
            if content.pop("format") != FORMAT:
                raise ValueError("another format")
            content["rows"] = {int(step): tuple(row) for step, row in content["rows"].items()}
            for name in ("full_steps", "magnitude_ratios"):
                content[name] = tuple(content[name])
            if content["erta"] is not None:
                content["erta"] = _erta(content["erta"])
            return cls(**content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} does not hold a fitted schedule ({error}): make it again with tapstudy.fit_schedule"
            ) from error

    @classmethod
    def of(cls, schedule: FittedSchedule | str | Path) -> FittedSchedule:
        """Return a schedule, or read it from a file."""
        return schedule if isinstance(schedule, FittedSchedule) else cls.load(schedule)

    def __str__(self) -> str:
        """Say what it does in a few lines."""
        mask = "".join("F" if step in self.full_steps else "." for step in range(self.num_steps))
        ranked = sorted(self.quality.items(), key=lambda item: -item[1])
        lines = [f"{len(self.full_steps)} full passes of {self.num_steps} steps: {mask}",
                 f"between them: {'rows of weights, residual ' + self.residual if self.rows else 'TAP'}"]  # fmt: skip
        if self.smooth_time:
            lines.append(f"low-pass of the clock: sigma {self.smooth_time:g}")
        usual = next((one for one in ranked[5:] if one[0].startswith("S(") and one[0].endswith(": TAP")), None)
        lines += [f"  {value:6.2f} dB  {name}" for name, value in [*ranked[:5], *filter(None, [usual])]]
        return "\n".join([*lines, f"search: {self.passes_spent:g} full passes"])


def _erta(content: Mapping[str, Any]) -> ErtaCalibration:
    return ErtaCalibration(
        frozenset(content["full_steps"]),
        {int(step): (float(slope), float(offset)) for step, (slope, offset) in content["lines"].items()},
        {int(step): float(scale) for step, scale in content["time_scales"].items()},
    )
