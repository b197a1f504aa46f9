"""The options that say what a command samples: a model or any pipeline, and its labels or prompts."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_type_hints

import typer

from tapstudy.commands.checks import LABELS, check_arguments, conditions_of

SCHEDULER = "dask scheduler whose workers sample, a pipeline each: tcp://HOST:PORT"


class Subject(NamedTuple):
    """Hold what is sampled.

    Attributes:
        model: as `bench.image_set.ImageSet` takes it.
        pipe: that model, quiet.
        conditions: labels, prompts, or further arguments of the pipeline's call.
    """

    model: str
    pipe: Any
    conditions: list[Any]


@dataclass(frozen=True)
class Asked:
    """Hold the values of the options; their help is what the command shows."""

    model: Annotated[
        str, typer.Option("--model", "--pipeline", help="embedded model, folder of any diffusers pipeline, or hub id")
    ] = "mnist-dit"
    labels: Annotated[str, typer.Option(help=LABELS)] = ""
    prompt: Annotated[list[str] | None, typer.Option(help="a prompt; again for more of them")] = None
    prompts: Annotated[
        Path | None,
        typer.Option(help="file with a prompt a line, or CSV whose columns are arguments of the call"),
    ] = None
    negative: Annotated[str, typer.Option(help="what to lead away from, of models of text")] = ""
    device: Annotated[
        str, typer.Option(help="auto (the CPU for embedded models, else a GPU where there is one), cpu, cuda, cuda:1")
    ] = "auto"
    dtype: Annotated[str, typer.Option(help="of the weights; usually float32 on the CPU, bfloat16 on a GPU")] = ""
    offload: Annotated[str, typer.Option(help="none, model or sequential: weights wait on the CPU")] = "none"

    def pipeline_class(self) -> type[Any] | None:
        """Return the class of the model's pipeline, whose weights are not read; None if it is not known here."""
        from tapstudy.models.sources import Source, pipeline_class

        return pipeline_class(Source.parse(self.model).name)

    def load(
        self,
        named: Sequence[str] = (),
        *,
        examples: int = 4,
        repeats: bool = False,
        read: Callable[[Path], list[Any]] | None = None,
    ) -> Subject:
        """Load the model, and read what is asked of it.

        Args:
            named: labels or prompts that were given without an option.
            examples: prompts of an embedded model when nothing is asked for.
            repeats: one label or prompt may come twice, where every image has a seed of its own.
            read: reads the file of prompts, in place of `read_prompts`.

        Raises:
            FileNotFoundError: no such model or file of prompts.
            TypeError: a pipeline without a supported transformer.
            ValueError: options that contradict one another, labels or prompts that the model does not take.
        """
        from tapstudy.bench.conditions import read_prompts
        from tapstudy.bench.image_set import pipe_of
        from tapstudy.instrument.handle import find_transformers
        from tapstudy.models.sources import Source

        ways = {"LABELS|PROMPTS": named, "--labels": self.labels, "--prompt": self.prompt, "--prompts": self.prompts}
        used = [name for name, value in ways.items() if value]
        if len(used) > 1:
            raise ValueError(f"{' and '.join(used)} both say what to sample: give one of them")
        asked: Sequence[Any] = [*named, *(self.prompt or []), *filter(None, [self.labels])]
        if self.prompts is not None:
            asked = (read or read_prompts)(self.prompts)
        model = str(Source.parse(self.model).with_options(device=self.device, dtype=self.dtype, offload=self.offload))
        option = used[0] if used else "--prompt"
        if (kind := self.pipeline_class()) is not None:  # before the weights are read
            check_arguments(kind, asked, option, negative=self.negative)
        pipe = pipe_of(model)
        find_transformers(pipe)
        return Subject(
            model, pipe, conditions_of(pipe, asked, option, negative=self.negative, examples=examples, repeats=repeats)
        )


def takes_subject(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `Asked` in place of its parameter `subject`."""
    hints, options = get_type_hints(command, include_extras=True), get_type_hints(Asked, include_extras=True)
    parameters = []
    for name, parameter in inspect.signature(command).parameters.items():
        new = {option: (hint, getattr(Asked, option)) for option, hint in options.items()}
        if name != "subject":
            new = {name: (hints[name], parameter.default)}
        parameters += [
            inspect.Parameter(name, parameter.KEYWORD_ONLY, default=default, annotation=hint)
            for name, (hint, default) in new.items()
        ]

    @functools.wraps(command)
    def run(**given: Any) -> None:
        asked = Asked(**{name: given.pop(name) for name in options})
        command(subject=asked, **given)

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run
