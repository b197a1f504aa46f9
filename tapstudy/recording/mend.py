"""What a recording lacks: files that are damaged, so that samples are made again, and steps that nobody saw."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tapstudy.recording.damage import Damage, RecordingError, find_damage
from tapstudy.recording.store import SampleWriter, Store


def mend(store: Store) -> list[Damage]:
    """Count damaged samples as not finished; flags first, as they tell which samples there are."""
    damage: list[Damage] = []
    for flags in (True, False):
        samples = [] if flags else np.flatnonzero(store.finished).tolist()
        for found in find_damage(store.path, samples, checksums=True):
            assert found.sample is not None  # `Store.resume` refuses the rest
            store.finish(found.sample, finished=False)
            damage.append(found)
    return damage


def check_steps_seen(store: Store, writer: SampleWriter, contexts: Mapping[str, int], *, shared: bool) -> None:
    """Whether a sample told all its steps: what nobody saw would be stored as missing values.

    Args:
        writer: of a sample at its end.
        contexts: name -> index.
        shared: other transformers run steps too, so the samples before tell which are those of this one.

    Raises RecordingError.
    """
    seen: set[int] = set().union(*writer.steps.values())
    expected = store.steps_told() if shared and seen else set(range(store.layout.sizes["step"]))
    if expected is not None and seen != expected:
        raise RecordingError(
            f"sample {writer.sample}: {len(seen)} of its {len(expected)} steps were seen, the others passed the "
            "recorder by: was the transformer's forward replaced, or the pipeline's transformer, after the recording "
            "began (offloading, compiling, another cache)? Finished samples are kept"
        )
    if absent := [name for name, index in contexts.items() if index not in writer.steps]:
        raise RecordingError(
            f"sample {writer.sample}: no step of context {absent[0]!r}, which the samples before it have; record with "
            "arguments that keep one guidance for all samples. Finished samples are kept"
        )
