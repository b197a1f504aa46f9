"""Turns what the instrument tells into the variables of a recording, step by step."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.driver import Span, run_info
from tapstudy.policies.anchored import AnchoredPolicy
from tapstudy.recording.claim import claim, clear
from tapstudy.recording.damage import ROOT, RecordingError
from tapstudy.recording.mend import check_steps_seen, mend
from tapstudy.recording.schema import FEATURES, VARIABLES, Layout
from tapstudy.recording.scores import score_step
from tapstudy.recording.store import Coords, SampleWriter, Store, read_attributes

Reduce = Callable[[Tensor], Tensor]
Array = NDArray[Any]


class Recorder:
    """Listens to one transformer and writes one sample after the other.

    The size of the arrays is known once every context has made its first step, so the store is laid out when the
    second step begins; until then the first step waits in memory.

    Args:
        path: of the store.
        judge: scores predictors and knows the schedule. Teacher-forced, copies of it are shown the exact features;
            closed-loop, the events bring the policy that ran.
        samples: how many there will be in all.
        shared_steps: other transformers run the steps that this one leaves out.
        fields: of `schema.VARIABLES`.
        depths: of the stored probe.
        coords, attrs: of the dataset.
        say: shows a line to the user.
    """

    def __init__(
        self,
        path: Path,
        judge: AnchoredPolicy,
        *,
        teacher_forced: bool,
        samples: int,
        shared_steps: bool,
        fields: tuple[str, ...],
        depths: tuple[int, ...],
        dtype: str,
        reduce: Mapping[str, Reduce],
        coords: Coords,
        attrs: dict[str, Any],
        force: bool,
        say: Callable[[str], None],
    ) -> None:
        self.path, self.judge, self.teacher_forced = path, judge, teacher_forced
        self.samples, self.fields, self.depths, self.dtype, self.reduce = samples, fields, depths, dtype, reduce
        self.shared_steps = shared_steps
        self.coords, self.attrs, self.force = coords, attrs, force
        self.say = say
        self.store: Store | None = None
        self._writers: list[SampleWriter] = []
        self._waiting: list[tuple[str, dict[str, Array]]] = []
        self._contexts: dict[str, int] = {}
        self._judges: dict[str, AnchoredPolicy] = {}
        self._batch: list[int] = []
        self._grid = (1, 1, 1)
        self._span: Span | None = None
        self._held: int | None = None
        self._made = False

    # The store

    def open(self) -> None:
        """Take hold of `path`, and go on with the recording there, if any.

        Raises RecordingError if it was made with another configuration.
        """
        self._made = not self.path.exists()
        self._held = claim(self.path)
        if not (self.path / ROOT).is_file():
            return
        held = json.loads(read_attributes(self.path)["configuration"])
        asked = json.loads(self.attrs["configuration"])
        differing = sorted(key for key in held.keys() | asked.keys() if held.get(key) != asked.get(key))
        if differing:
            detail = "; ".join(
                f"{key}: {_short(held.get(key))} there, {_short(asked.get(key))} asked" for key in differing
            )
            raise RecordingError(
                f"{self.path} holds a recording of another configuration ({detail}); choose another path"
            )
        store = Store.resume(self.path)
        damage = [] if store is None else mend(store)
        if damage:
            self.say(f"{self.path} is damaged ({damage[0]}); {len({d.sample for d in damage})} samples are made again")
        if store is None or not store.finished.any():
            clear(self.path)
            return
        if not store.finished.all():
            new = store.tell_versions(json.loads(self.attrs["versions"]))
            if new is not None:
                warnings.warn(f"{self.path} is gone on with under other versions: {new}", stacklevel=3)
        self.store = store
        contexts = store.values("context")
        self._contexts = {} if contexts is None else {str(name): index for index, name in enumerate(contexts)}

    def is_done(self, samples: Sequence[int]) -> bool:
        return self.store is not None and bool(self.store.finished[list(samples)].all())

    def close(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None
        if self._made and self.store is None:
            with suppress(OSError):  # not empty: another process has begun
                self.path.rmdir()

    @property
    def reached(self) -> float:
        """Samples that are done, with the share of those in progress."""
        if not self._writers or self.store is None:
            return 0.0
        steps = {step for told in self._writers[0].steps.values() for step in told}
        return self._batch[0] + len(self._batch) * len(steps) / self.store.layout.sizes["step"]

    def size_text(self) -> str:
        if self.store is None:
            return ""
        return f"{self.store.layout.sample_bytes() * int(self.store.finished.sum()) / 2**20:.1f} MiB before compression"

    # One batch of samples

    def begin(self, samples: Sequence[int]) -> None:
        self._batch = list(samples)
        self._waiting.clear()
        self._judges.clear()
        self._writers = [self.store.begin(sample) for sample in samples] if self.store else []

    def end(self, images: Array | None) -> None:
        """The pipeline is through: images (batch, y, x, band) or videos (batch, frame, y, x, band)."""
        self._lay_out_if_needed()
        assert self.store is not None
        check_steps_seen(self.store, self._writers[0], self._contexts, shared=self.shared_steps)
        if "image" in self.fields:
            if images is None:
                raise ValueError(
                    "the pipeline returned no images to store: leave image out of the fields, or output_type out of "
                    "the calls"
                )
            if len(images) != len(self._batch):
                raise ValueError(f"the call made {len(images)} images, but was counted as {len(self._batch)} samples")
            name = "image" if images.ndim == 4 else "video"
            self.store.add(name, dict(zip(VARIABLES[name].dims, images.shape[1:], strict=True)))
            for writer, image in zip(self._writers, images, strict=True):
                writer.put_whole(name, image)
        for writer in self._writers:
            writer.finish()
        self._writers = []

    # One step

    def __call__(self, event: StepEvent) -> None:
        if event.residual is None:
            raise RecordingError(f"step {event.step} of context {event.context!r} showed no residual to record")
        names = self._branches(event, len(event.residual))
        for name in names:
            if name not in self._contexts and self.store is not None:
                raise RecordingError(
                    f"context {name!r} appeared after the recording was laid out for {list(self._contexts)}; record "
                    "with arguments that keep one guidance from the first step to the last"
                )
            self._contexts.setdefault(name, len(self._contexts))
        if event.step > 0:
            self._lay_out_if_needed()
        else:
            self._span = event.span
            if self.store is not None:
                self._check_timesteps(self.store)
        values = self._step_values(event)
        count = len(self._batch)
        for i, name in enumerate(names):
            part = {key: value[i * count : (i + 1) * count] for key, value in values.items()}
            if self.store is None:
                self._waiting.append((name, part))
            else:
                self._put(name, event.step, part)

    def _branches(self, event: StepEvent, batch: int) -> list[str]:
        """The contexts that a batch holds, one after the other."""
        if batch % len(self._batch):
            raise ValueError(
                f"the transformer got a batch of {batch} for {len(self._batch)} samples: cannot tell whose row is whose"
            )
        count = batch // len(self._batch)
        names = [event.context] if count == 1 else list(event.branches)
        if len(names) != count:
            raise ValueError(f"the transformer got {count} rows per sample, but its branches are {names}")
        return names

    def _step_values(self, event: StepEvent) -> dict[str, Array]:
        """Everything asked for at this step, batch first."""
        assert event.residual is not None
        self._grid = event.grid
        batch = len(event.residual)
        policy = self._judge(event)
        full = policy.wants_full(event.step) if self.teacher_forced else event.kind == "full"
        values: dict[str, Array] = {"is_full": np.full(batch, int(full)), "distance": np.zeros(batch)}
        if not full:
            values |= self._scores(event, policy, batch)
        features: dict[str, Tensor | None] = {
            name: getattr(event, name) for name in ("residual", "latent", "latent_residual")
        }
        if "probe" in self.fields:
            parts = [self._reduced("probe", event.probes[depth]) for depth in self.depths]
            features["probe"] = torch.stack(parts, dim=1)  # (B, depth, N, D)
        for name in FEATURES:
            tensor = features.get(name)
            if name in self.fields and tensor is not None:
                values[name] = _numpy(tensor if name == "probe" else self._reduced(name, tensor))
        if self.teacher_forced and full:
            policy.observe(event.step, event.probe, event.residual)
        return values

    def _judge(self, event: StepEvent) -> AnchoredPolicy:
        if not self.teacher_forced:
            assert isinstance(event.policy, AnchoredPolicy)
            return event.policy
        if event.step == 0:
            self._judges[event.context] = self.judge.fresh()
            self._judges[event.context].begin(run_info(event.span, event.grid))
        return self._judges[event.context]

    def _scores(self, event: StepEvent, policy: AnchoredPolicy, batch: int) -> dict[str, Array]:
        assert event.residual is not None
        prediction = policy.predict(event.step, event.probe) if self.teacher_forced else event.prediction
        assert prediction is not None
        scores = score_step(policy, event.step, prediction, event.residual)
        tensors = {
            "distance": torch.full((batch,), scores.distance),
            "is_distinct": scores.distinct.expand(batch, -1),
            "choice": scores.choice,
            "proxy_loss": scores.proxy_loss,
            "true_error": scores.true_error,
        }
        return {name: _numpy(tensor) for name, tensor in tensors.items() if name in self.fields and tensor is not None}

    def _reduced(self, name: str, tensor: Tensor) -> Tensor:
        return self.reduce[name](tensor) if name in self.reduce else tensor

    def _put(self, context: str, step: int, part: dict[str, Array]) -> None:
        for row, writer in enumerate(self._writers):
            for name, values in part.items():
                if name in self.fields:
                    writer.put(name, self._contexts[context], step, values[row])

    # Laying out

    def _along_steps(self, attribute: str) -> Array | None:
        """Timesteps or sigmas of the steps that the transformer sees in the run."""
        values = getattr(self._span, attribute, None)
        return None if values is None else values.double().cpu().numpy()

    def _num_steps(self) -> int | None:
        return None if self._span is None else len(self._span.timesteps)

    def _check_timesteps(self, store: Store) -> None:
        held, ours = store.values("timestep"), self._along_steps("timesteps")
        if held is not None and ours is not None and not np.array_equal(held, ours):
            raise RecordingError(
                f"sample {self._batch[0]} is sampled at {len(ours)} other timesteps than the samples before it (there "
                f"were {len(held)}); all calls of a recording must agree in steps, scheduler and size"
            )

    def _lay_out_if_needed(self) -> None:
        if self.store is not None:
            return
        if not self._waiting:
            raise RecordingError("the pipeline made no step of the transformer: nothing to record")
        policy = next(iter(self._judges.values()), self.judge)
        first = {name: values for _, part in self._waiting for name, values in part.items()}
        num_steps = self._num_steps()
        if num_steps is None:
            raise RecordingError("the pipeline's scheduler does not tell its timesteps: cannot lay out the recording")
        sizes = {
            "sample": self.samples,
            "context": len(self._contexts),
            "step": num_steps,
            "token": self._grid[0] * self._grid[1] * self._grid[2],
            "predictor": len(policy.labels),
            "depth": len(self.depths),
        }
        for name, dim in (
            ("probe", "channel"),
            ("residual", "channel"),
            ("latent", "latent_channel"),
            ("latent_residual", "latent_channel"),
        ):
            if name in first and sizes.setdefault(dim, first[name].shape[-1]) != first[name].shape[-1]:
                raise ValueError(
                    f"{name} has {first[name].shape[-1]} channels, another feature {sizes[dim]}: reduce both"
                )
        layout = Layout(sizes, tuple(name for name in self.fields if name not in ("image", "video")), self.dtype)
        self._check_room(layout)
        self.store = Store.create(self.path, layout, coords=self._all_coords(policy, num_steps), attrs=self.attrs)
        self._writers = [self.store.begin(sample) for sample in self._batch]
        for context, part in self._waiting:
            self._put(context, 0, part)
        self._waiting.clear()

    def _check_room(self, layout: Layout) -> None:
        needed = layout.sample_bytes() * self.samples
        folder = next(folder for folder in (self.path, *self.path.parents) if folder.exists())
        free = shutil.disk_usage(folder).free
        self.say(
            f"recording {self.samples} samples: at most {needed / 1e9:.3f} GB before compression, "
            f"{free / 1e9:.1f} GB free"
        )
        if needed > free and not self.force:
            raise RecordingError(
                f"the recording may need {needed / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB free: store fewer "
                "fields, use dtype='float16' or reduce=, or force=True to try all the same"
            )

    def _all_coords(self, policy: AnchoredPolicy, num_steps: int) -> Coords:
        frames, rows, columns = self._grid
        token = np.arange(frames * rows * columns)
        coords: dict[str, tuple[str, Any, dict[str, str]]] = {
            **self.coords,
            "context": ("context", list(self._contexts), {"long_name": "guidance branch"}),
            "step": ("step", np.arange(num_steps), {"long_name": "sampling step, noise first", "units": "1"}),
            "row": ("token", token // columns % rows, {"long_name": "row of the token", "units": "1"}),
            "col": ("token", token % columns, {"long_name": "column of the token", "units": "1"}),
            "order": ("predictor", [label.order for label in policy.labels], {"long_name": "order m", "units": "1"}),
            "shift": (
                "predictor",
                [float(label.shift) for label in policy.labels],
                {"long_name": "shift s of the horizon k - s", "units": "1"},
            ),
        }
        if frames > 1:
            coords["frame"] = ("token", token // (columns * rows), {"long_name": "frame of the token", "units": "1"})
        if any(label.family for label in policy.labels):  # a union: orders and shifts do not tell its members apart
            families = [label.family for label in policy.labels]
            coords["family"] = ("predictor", families, {"long_name": "family of the predictor"})
        if "probe" in self.fields:
            coords["depth"] = (
                "depth",
                list(self.depths),
                {"long_name": "block whose modulated input it is", "units": "1"},
            )
        for name, attribute, text in (
            ("timestep", "timesteps", "timestep given to the model"),
            ("sigma", "sigmas", "noise level"),
        ):
            values = self._along_steps(attribute)
            if values is not None:
                coords[name] = ("step", values, {"long_name": text, "units": "1"})
        return coords


def _numpy(tensor: Tensor) -> Array:
    tensor = tensor.detach()
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
