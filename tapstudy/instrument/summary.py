"""What happened in a run: as an object, as text, as JSON, and drawn for notebooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import InitVar, asdict, dataclass, field
from functools import cached_property
from html import escape
from statistics import mean, median
from typing import Any

from tapstudy.instrument.flops import Passes
from tapstudy.instrument.trajectory import ContextRun

KINDS = {"F": "full", ".": "skipped", "p": "run in part", "s": "skipped, with a full pass beside"}
COLOURS = {"F": "#333", ".": "#ddd", "p": "#777", "s": "#999"}
LETTERS = {"full": "F", "skip": ".", "partial": "p", "shadow": "s"}


@dataclass(frozen=True)
class ContextSummary:
    """One context of one transformer along its last run.

    Attributes:
        mask: one letter per step: F full, . skipped, p some of the model ran, s skipped but computed beside (shadow).
        choices: tokens that took each predictor, by label, without those nobody took.
        seconds: of every step, by kind.
        cache_bytes: most memory its history has held, in host memory if it is kept there.
        fail_opens: steps that ran in full although the policy wanted to skip, by reason.
    """

    transformer: str
    context: str
    mask: str
    choices: dict[str, int]
    seconds: dict[str, list[float]]
    cache_bytes: int
    fail_opens: dict[str, int]

    @property
    def num_full(self) -> int:
        return self.mask.count("F")

    @property
    def num_skipped(self) -> int:
        return len(self.mask) - self.num_full - self.num_partial

    @property
    def num_partial(self) -> int:
        return self.mask.count("p")

    @property
    def counts(self) -> str:
        """Say how many steps there were of every kind."""
        part = f", {self.num_partial} run in part" if self.num_partial else ""
        return f"{self.num_full} full{part} and {self.num_skipped} skipped"

    @classmethod
    def of(cls, transformer: str, run: ContextRun) -> ContextSummary:
        counts = run.choices.tolist() if run.choices is not None else []
        choices = {str(label): count for label, count in zip(run.policy.labels, counts, strict=False) if count}
        mask = "".join(LETTERS[kind] for kind in run.kinds)
        return cls(transformer, run.name, mask, choices, run.clock.seconds(), run.cache_bytes, dict(run.fail_opens))

    def __str__(self) -> str:
        lines = [
            f"{self.transformer} / {self.context}: {self.counts} of {len(self.mask)} steps",
            f"  mask     {self.mask}",
        ]
        lines += [
            f"  {kind:<8} {1e3 * mean(values):.2f} ms a step ({len(values)} steps)"
            for kind, values in self.seconds.items()
            if values
        ]
        lines.append(f"  history  {self.cache_bytes / 2**20:.2f} MiB")
        if self.choices:
            total = sum(self.choices.values())
            shares = sorted(self.choices.items(), key=lambda item: -item[1])
            lines.append("  choices  " + ", ".join(f"{label} {100 * count / total:.0f}%" for label, count in shares))
        lines += [f"  ran in full {count} times: {reason}" for reason, count in self.fail_opens.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class Summary:
    """One entry per transformer and context.

    Attributes:
        notes: where the policy had no part, and why.

    Args:
        passes: what they ran, as far as it decides their FLOPs. No field: who copies the fields wants no model.
    """

    contexts: list[ContextSummary]
    notes: list[str] = field(default_factory=list)
    passes: InitVar[Sequence[Passes]] = ()

    def __post_init__(self, passes: Sequence[Passes]) -> None:
        object.__setattr__(self, "_passes", passes)

    @property
    def mask(self) -> str:
        """Return one letter per step of the run: of the context with most steps, over transformers that share them."""
        longest: dict[str, str] = {}
        for context in self.contexts:
            longest[context.transformer] = max(longest.get(context.transformer, ""), context.mask, key=len)
        return "".join(longest.values())

    @property
    def share_skipped(self) -> float:
        """Return the share of all calls of the transformers that were skipped; NaN before the first."""
        steps = sum(len(context.mask) for context in self.contexts)
        return sum(context.mask.count(".") for context in self.contexts) / steps if steps else float("nan")

    @property
    def speed_up(self) -> float:
        """Return the time of as many full passes over the time that the transformers took; NaN where none ran.

        Measured in this run, so that its first passes, which may compile or load, count as they came.
        """
        full = [second for context in self.contexts for second in context.seconds.get("full", ())]
        spent = sum(second for context in self.contexts for kind in context.seconds.values() for second in kind)
        steps = sum(len(context.mask) for context in self.contexts)
        return steps * median(full) / spent if full and spent else float("nan")

    @property
    def flops_ratio(self) -> float:
        """Return the FLOPs of as many full passes over those of what ran of the model; NaN if `flops_note` tells why.

        Counted when it is read first: the passes go once more through a copy of the model without values. That takes
        seconds of the processor for a large model, no memory, and nothing of the device.
        """
        return self._flops[0]

    @property
    def flops_note(self) -> str | None:
        """Return why FLOPs could not be counted, None if they could or nothing has run."""
        return self._flops[1]

    @cached_property
    def _flops(self) -> tuple[float, str | None]:
        try:
            counted = [passes.flops() for passes in vars(self)["_passes"] if passes.kinds]
        except Exception as error:  # a model may do anything where it finds no values
            told = str(error).strip().partition("\n")[0]
            return float("nan"), f"FLOPs cannot be counted without values ({type(error).__name__}: {told})"
        finally:
            object.__setattr__(self, "_passes", ())  # counted once
        spent = sum(one.spent for one in counted)
        return (sum(one.in_full for one in counted) / spent if spent else float("nan")), None

    def __getstate__(self) -> dict[str, Any]:
        """Count the FLOPs before it is copied or pickled, which then needs no model."""
        return {"contexts": self.contexts, "notes": self.notes, "_passes": (), "_flops": self._flops}

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON could hold it."""
        return {
            "speed_up": _plain(self.speed_up),
            "share_skipped": _plain(self.share_skipped),
            "flops_ratio": _plain(self.flops_ratio),
            "flops_note": self.flops_note,
            "contexts": [asdict(context) for context in self.contexts],
            "notes": list(self.notes),
        }

    def to_json(self, **options: Any) -> str:
        """Return `to_dict` as text; options are those of `json.dumps`."""
        return json.dumps(self.to_dict(), **options)

    def __str__(self) -> str:
        lines = [*map(str, (*self.contexts, *self.notes))]
        if self.contexts and self.share_skipped == self.share_skipped:
            skipped = f"{100 * self.share_skipped:.0f} % of the passes skipped"
            lines.append(f"{skipped}; {self._speed}")
        return "\n".join(lines) or "nothing has run yet"

    @property
    def _speed(self) -> str:
        if self.speed_up != self.speed_up:
            return "how much faster the transformer was is not known, since no pass ran in full"
        return f"the transformer was {self.speed_up:.2f} times as fast"

    def _repr_html_(self) -> str:
        """Draw it for notebooks: every step a cell, dark where the model ran in full."""
        rows = []
        for context in self.contexts:
            cells = "".join(
                f'<td title="step {step}: {KINDS[letter]}" style="padding:0;width:.7em;height:1em;'
                f'background:{COLOURS[letter]};border:1px solid white"></td>'
                for step, letter in enumerate(context.mask)
            )
            rows.append(
                f"<tr><td style='text-align:left'>{escape(context.transformer)} / {escape(context.context)}</td>"
                f"<td><table style='border-collapse:collapse'><tr>{cells}</tr></table></td>"
                f"<td>{context.counts}, "
                f"{context.cache_bytes / 2**20:.2f} MiB</td></tr>"
            )
        notes = "".join(f"<li>{escape(note)}</li>" for note in self.notes)
        known = self.flops_ratio == self.flops_ratio
        flops = f"FLOPs: a full run takes {self.flops_ratio:.2f} times as many" if known else self.flops_note or ""
        told = "" if not rows else f"<p>{escape(f'{str(self).splitlines()[-1]}. {flops}'.strip())}</p>"
        return (
            f"<table>{''.join(rows)}</table>{told}{f'<ul>{notes}</ul>' if notes else ''}"
            if rows or notes
            else "<p>nothing has run yet</p>"
        )


def _plain(number: float) -> float | None:
    """Return None for what is not known: JSON has no NaN."""
    return number if number == number else None
