"""Write the arrays of a recording, one batch of samples after the other."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from tapstudy.instrument.driver import Span
from tapstudy.recording.configuration import tell_differences
from tapstudy.recording.damage import ROOT, Damage, RecordingError, find_damage
from tapstudy.recording.lock import lock
from tapstudy.recording.schema import COORDINATES, FEATURES, VARIABLES, Layout, Variable
from tapstudy.recording.scorer import Array
from tapstudy.recording.store import SampleWriter, Store, read_attributes

logger = logging.getLogger(__name__)


class Writer:
    """Lay out a recording or resume it, and keep its finished samples.

    The size of the arrays is known once every context has made its first step, so the store is laid out when the
    second step begins; until then the first step waits in memory.

    Args:
        path: of the store.
        fields: of `schema.VARIABLES`.
        modules: name -> path, of those whose outputs are stored too.
        preview_steps: of the previews; all when None.
        dtype: of scores and features on disk.
        coords: values of those in `schema.COORDINATES` that are known before anything has run, `seed` among them.
        attrs: of the dataset.
        inputs: of the calls, to keep, by hash.
        shared_steps: other transformers run the steps that this one leaves out.
        force: write even if the disk might not hold it.
    """

    def __init__(
        self,
        path: Path,
        *,
        fields: tuple[str, ...],
        modules: Mapping[str, str],
        preview_steps: Sequence[int] | None,
        dtype: str,
        coords: Mapping[str, Any],
        attrs: dict[str, Any],
        inputs: Mapping[str, Array],
        shared_steps: bool,
        force: bool,
    ) -> None:
        self.path, self.fields, self.modules, self.dtype = path, fields, modules, dtype
        self.preview_steps, self.coords, self.attrs = preview_steps, coords, attrs
        self.inputs, self.shared_steps, self.force = inputs, shared_steps, force
        self.store: Store | None = None
        self.batch: Sequence[int] = ()
        self._samples: list[SampleWriter] = []
        self._waiting: list[tuple[str, Mapping[str, Array]]] = []
        self._contexts: dict[str, int] = {}
        self._grid = (1, 1, 1)
        self._span: Span | None = None
        self._pictures: dict[int, Array] = {}
        self._previewed: set[int] = set()
        self._modules: Mapping[str, Variable] = {}
        self._ran: dict[str, set[tuple[int, int]]] = {}
        self._silent: set[str] = set()

    # The recording

    @contextmanager
    def open(self) -> Iterator[None]:
        """Lock the folder, and resume the recording there, if any.

        Raises RecordingError if it was made with another configuration, or is damaged beyond mending.
        """
        with lock(self.path):
            if (self.path / ROOT).is_file():
                self._resume()
            yield

    def _resume(self) -> None:
        held, asked = (json.loads(attrs["configuration"]) for attrs in (read_attributes(self.path), self.attrs))
        if differing := tell_differences(held, asked):
            raise RecordingError(
                f"{self.path} holds a recording of another configuration ({'; '.join(differing)}); choose another path"
            )
        store = Store.resume(self.path)
        if store is not None:
            self._mend(store)
        if store is None or not store.finished.any():
            for entry in self.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            return
        if not store.finished.all() and (new := store.tell_versions(json.loads(self.attrs["versions"]))) is not None:
            warnings.warn(f"{self.path} is resumed under other versions: {new}", stacklevel=5)
        self.store = store
        store.keep(self.inputs)
        names = store.values("context")
        self._contexts = {} if names is None else {str(name): index for index, name in enumerate(names)}

    def _mend(self, store: Store) -> None:
        """Count damaged samples as not finished; flags first, as they tell which samples there are."""
        damage: list[Damage] = []
        for flags in (True, False):
            samples = [] if flags else np.flatnonzero(store.finished).tolist()
            for found in find_damage(store.path, samples, checksums=True):
                assert found.sample is not None  # `Store.resume` refuses the rest
                store.finish(found.sample, finished=False)
                damage.append(found)
        if damage:
            again = len({d.sample for d in damage})
            logger.warning("%s is damaged (%s); %d samples are made again", self.path, damage[0], again)

    def is_done(self, samples: Sequence[int]) -> bool:
        """Tell whether all of these samples are finished."""
        return self.store is not None and bool(self.store.finished[list(samples)].all())

    @property
    def reached(self) -> float:
        """Samples that are done, with the share of those in progress."""
        if not self._samples or self.store is None:
            return 0.0
        steps = set().union(*self._samples[0].steps.values())
        return self.batch[0] + len(self.batch) * len(steps) / self.store.layout.sizes["step"]

    def size_text(self) -> str:
        """Tell the size of what is finished."""
        if self.store is None:
            return ""
        return f"{self.store.layout.sample_bytes() * int(self.store.finished.sum()) / 2**20:.1f} MiB before compression"

    # A batch of samples

    def begin(self, samples: Sequence[int]) -> None:
        """Begin a batch of samples."""
        self.batch = samples
        self._waiting.clear()
        self._pictures.clear()
        self._previewed.clear()
        self._ran = {name: set() for name in self.modules}
        self._samples = [SampleWriter(self.store, sample) for sample in samples] if self.store else []

    def put(
        self,
        step: int,
        values: Mapping[str, Mapping[str, Array]],
        *,
        modules: Mapping[str, Variable],
        grid: tuple[int, int, int],
        span: Span | None,
    ) -> None:
        """Write a step of the batch.

        Args:
            values: context -> field -> (sample, ...).
            modules: variables of those that have run so far.
            grid: frames, rows and columns of the tokens.
            span: the steps that the transformer sees in the run, None if no scheduler tells.

        Raises:
            RecordingError: a context or timesteps that the samples before have not, no room, or values that are not
                finite or of another size.
            ValueError: features that share a dimension but not its size.
        """
        for context in values:
            if context not in self._contexts and self.store is not None:
                raise RecordingError(
                    f"context {context!r} appeared after the recording was laid out for {list(self._contexts)}; record "
                    "with arguments that keep one guidance from the first step to the last"
                )
            self._contexts.setdefault(context, len(self._contexts))
        if step > 0:
            self._lay_out()
        else:
            self._grid, self._span, self._modules = grid, span, modules
            held = None if self.store is None else self.store.values("timestep")
            ours = _along(span, "timesteps")
            if held is not None and ours is not None and not np.array_equal(held, ours):
                raise RecordingError(
                    f"sample {self.batch[0]} is sampled at {len(ours)} other timesteps than the samples before it "
                    f"(there were {len(held)}); all calls of a recording must agree in steps, scheduler and size"
                )
        for context, fields in values.items():
            self._put(context, step, fields)

    def _put(self, context: str, step: int, fields: Mapping[str, Array]) -> None:
        if self.store is None:
            self._waiting.append((context, fields))
        for name in self._ran.keys() & fields.keys():
            self._ran[name].add((self._contexts[context], step))
        for row, sample in enumerate(self._samples):
            for name, values in fields.items():
                sample.put(name, self._contexts[context], step, values[row])

    def put_preview(self, step: int, pictures: Array) -> None:
        """Write what a step expects, uint8 (sample, y, x, band) or (sample, frame, y, x, band).

        Raises RecordingError for another number of pictures than samples.
        """
        if len(pictures) != len(self.batch):
            raise RecordingError(f"the scheduler's step has {len(pictures)} samples, the call {len(self.batch)}")
        self._pictures[step] = pictures
        if self.store is not None:
            self._store_previews(self.store)

    def _store_previews(self, store: Store) -> None:
        steps = _preview_steps(store)
        for step, pictures in self._pictures.items():
            name = "preview" if pictures.ndim == 4 else "preview_video"
            store.add(name, dict(zip(VARIABLES[name].dims[1:], pictures.shape[1:], strict=True)))
            for sample, picture in zip(self._samples, pictures, strict=True):
                sample.put_preview(name, steps.index(step), picture)
            self._previewed.add(step)
        self._pictures.clear()

    def _end_previews(self, store: Store, seen: set[int]) -> None:
        """Check that no preview is missing; steps of another transformer are left black."""
        steps = {*_preview_steps(store)}
        if missing := sorted((steps & seen) - self._previewed):
            raise RecordingError(
                f"sample {self.batch[0]}: the pipeline's scheduler made no step after step {missing[0]} of the "
                "transformer, so that there is no preview of it: was the scheduler replaced?"
            )
        for step in steps - seen:
            name = next(name for name in ("preview", "preview_video") if name in store.layout.variables)
            self._pictures[step] = np.zeros((len(self.batch), *store.layout.shape(name)[1:]), "uint8")
        self._store_previews(store)

    def end(self, images: Array | None, count: int | None) -> None:
        """Finish the samples of the batch, with images (batch, y, x, band) or videos (batch, frame, y, x, band).

        Args:
            count: of images or latents that the pipeline made, None if it does not tell.

        Raises:
            RecordingError: no step at all, or steps or contexts that nobody saw: they would be stored as missing.
            ValueError: no images to store, or not one for every sample.
        """
        store = self._lay_out()
        self._end_previews(store, self._check_steps(store))
        self._say_what_did_not_run()
        if count not in (None, len(self.batch)):
            raise ValueError(f"the call made {count} images, but was counted as {len(self.batch)} samples")
        if "image" in self.fields:
            if images is None:
                raise ValueError(
                    "the pipeline returned no images to store: leave image out of the fields, or output_type out of "
                    "the calls"
                )
            name = "image" if images.ndim == 4 else "video"
            store.add(name, dict(zip(VARIABLES[name].dims, images.shape[1:], strict=True)))
            for sample, image in zip(self._samples, images, strict=True):
                sample.put_whole(name, image)
        for sample in self._samples:
            sample.finish()
        self._samples = []

    def _check_steps(self, store: Store) -> set[int]:
        """Return the steps that were seen; raises RecordingError where some passed the recorder by."""
        told = self._samples[0].steps
        seen: set[int] = set().union(*told.values())
        # other transformers may run steps too: the samples before tell which are those of this one
        expected = store.steps_told() if self.shared_steps and seen else set(range(store.layout.sizes["step"]))
        if expected is not None and seen != expected:
            raise RecordingError(
                f"sample {self.batch[0]}: {len(seen)} of its {len(expected)} steps were seen, the others passed the "
                "recorder by: was the transformer's forward replaced, or the pipeline's transformer, after the "
                "recording began (offloading, compiling, another cache)? Finished samples are kept"
            )
        if absent := [name for name, index in self._contexts.items() if index not in told]:
            raise RecordingError(
                f"sample {self.batch[0]}: no step of context {absent[0]!r}, which the samples before it have; record "
                "with arguments that keep one guidance for all samples. Finished samples are kept"
            )

        return seen

    def _say_what_did_not_run(self) -> None:
        """Warn once of every module that did not run at some steps."""
        told = {(context, step) for context, steps in self._samples[0].steps.items() for step in steps}
        for name, ran in self._ran.items():
            if told - ran and name not in self._silent:
                self._silent.add(name)
                steps = sorted({step for _, step in told - ran})
                warnings.warn(
                    f"{name} ({self.modules[name]}) did not run at {len(steps)} steps (the first is {steps[0]}): what "
                    "it gives there is stored as NaN",
                    stacklevel=4,
                )

    # Laying out

    def _lay_out(self) -> Store:
        """Lay the recording out, unless it is."""
        if self.store is not None:
            return self.store
        if not self._waiting:
            raise RecordingError("the pipeline made no step of the transformer: nothing to record")
        if self._span is None:
            raise RecordingError("the pipeline's scheduler does not tell its timesteps: cannot lay out the recording")
        coords = self._all_coords(len(self._span.timesteps))
        sizes = {COORDINATES[name][0]: len(values) for name, values in coords.items()}
        first = {name: values for _, fields in self._waiting for name, values in fields.items()}
        if absent := [name for name in self.modules if name not in first]:
            raise RecordingError(
                f"{absent[0]} ({self.modules[absent[0]]}) did not run in the first step, so that the size of what it "
                "gives is unknown: leave it out"
            )
        table = {name: VARIABLES[name] for name in self.fields if "step" in VARIABLES[name].dims} | dict(self._modules)
        for name in filter(first.__contains__, (*FEATURES, *self.modules)):
            for dim, count in zip(table[name].dims[2:-1], first[name].shape[1:-1], strict=True):
                sizes.setdefault(dim, count)
            dim, count = table[name].dims[-1], first[name].shape[-1]
            if sizes.setdefault(dim, count) != count:
                raise ValueError(f"{name} has {count} channels, another feature {sizes[dim]}: reduce both")
        layout = Layout(sizes, table, self.dtype)
        self._check_room(layout)
        self.store = Store.create(self.path, layout, coords=coords, attrs=self.attrs)
        self.store.keep(self.inputs)
        self._samples = [SampleWriter(self.store, sample) for sample in self.batch]
        for context, fields in self._waiting:
            self._put(context, 0, fields)
        self._waiting.clear()
        self._store_previews(self.store)
        return self.store

    def _all_coords(self, num_steps: int) -> dict[str, Any]:
        frames, rows, columns = self._grid
        token = np.arange(frames * rows * columns)
        previews = range(num_steps) if self.preview_steps is None else self.preview_steps
        if beyond := [step for step in previews if step >= num_steps]:
            raise ValueError(f"there is no step {beyond[0]} to preview: the run has steps 0 to {num_steps - 1}")
        found = {
            **self.coords,
            "preview_step": np.array(previews) if "preview" in self.fields else None,
            "context": list(self._contexts),
            "step": np.arange(num_steps),
            "row": token // columns % rows,
            "col": token % columns,
            "frame": token // (columns * rows) if frames > 1 else None,
            "timestep": _along(self._span, "timesteps"),
            "sigma": _along(self._span, "sigmas"),
        }
        return {name: found[name] for name in COORDINATES if found.get(name) is not None}

    def _check_room(self, layout: Layout) -> None:
        samples = layout.sizes["sample"]
        needed = layout.sample_bytes() * samples
        free = shutil.disk_usage(self.path).free
        told = "recording %d samples: at most %.3f GB before compression, %.1f GB free"
        logger.info(told, samples, needed / 1e9, free / 1e9)
        if needed > free and not self.force:
            raise RecordingError(
                f"the recording may need {needed / 1e9:.1f} GB, but {self.path} has {free / 1e9:.1f} GB free: store "
                "fewer fields, use dtype='float16' or reduce=, or force=True to try all the same"
            )


def _preview_steps(store: Store) -> list[int]:
    held = store.values("preview_step")
    return [] if held is None else held.tolist()


def _along(span: Span | None, attribute: str) -> Array | None:
    """Take timesteps or sigmas of the steps that the transformer sees in the run."""
    values = getattr(span, attribute, None)
    return None if values is None else values.double().cpu().numpy()
