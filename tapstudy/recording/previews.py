"""The image as it forms: small pictures of what every step expects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tapstudy.instrument.call import StepEvent
from tapstudy.instrument.clean_forecast import forecasts
from tapstudy.instrument.decode import check_decodes, decode, shrink
from tapstudy.instrument.handle import find_transformers
from tapstudy.recording.scorer import Array


class Previews:
    """Decode the clean image that the sampler expects, at chosen steps of the transformer that is recorded.

    Args:
        steps: of the recording; all of them when None.
        longest: side in pixels.
        transformer: name of the component that is recorded.

    Raises:
        ValueError: steps that are none, or a size below 1.
    """

    def __init__(self, pipe: Any, *, steps: Sequence[int] | None, longest: int, transformer: str | None) -> None:
        if steps is not None and (not steps or not all(isinstance(step, int) and step >= 0 for step in steps)):
            raise ValueError(f"preview_steps must be numbers of steps from 0 on, got {steps!r}")
        if longest < 1:
            raise ValueError(f"preview_size must be at least 1 pixel, got {longest}")
        self.pipe, self.longest, self.transformer = pipe, longest, transformer
        self.steps = None if steps is None else tuple(sorted(set(steps)))
        self._last: StepEvent | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Tell what determines the previews, as JSON could hold it."""
        return {"steps": None if self.steps is None else list(self.steps), "size": self.longest}

    def look(self, event: StepEvent) -> None:
        """Take in a pass of the transformer: the scheduler's next step belongs to it."""
        self._last = event

    @contextmanager
    def shown(self, show: Callable[[int, Array], None], samples: Callable[[], int]) -> Iterator[None]:
        """Call `show` with step and uint8 pictures (sample, [frame,] y, x, band) of all that is sampled in the block.

        Args:
            samples: tells how many the call in progress makes.

        Raises:
            ValueError: a scheduler or an autoencoder that no rule here knows.
        """
        check_decodes(self.pipe)
        models = find_transformers(self.pipe)
        _, adapter = models[self.transformer or next(iter(models))]

        def listen(clean: Tensor) -> None:
            event, self._last = self._last, None
            # steps of another transformer, or that nobody asked for
            if event is None or (self.steps is not None and event.step not in self.steps):
                return
            pictures = decode(self.pipe, _once(clean, samples()), event.grid, channel_dim=adapter.channel_dim)
            small = shrink(pictures, self.longest).movedim(1, -1)  # (B, [F,] y, x, band)
            show(event.step, (small * 255).round().byte().cpu().numpy())

        with forecasts(self.pipe.scheduler, listen):
            yield


def _once(clean: Tensor, samples: int) -> Tensor:
    """Leave out copies: some pipelines (DiT) step every guidance branch by the same guided output."""
    first = clean[:samples]
    return first if all(torch.equal(first, copy) for copy in clean.split(samples)) else clean


def preview_arguments(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Make the arguments of `record` that these settings come from."""
    made = configuration.get("preview")
    return {} if made is None else {"preview_steps": made["steps"], "preview_size": made["size"]}
